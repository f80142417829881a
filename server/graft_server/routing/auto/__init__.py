"""Routing from the text: a profile of what each adapter was trained on, and the index of them all."""
