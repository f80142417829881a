"""The database's history. A new revision is a module in ``versions`` that names its predecessor."""
