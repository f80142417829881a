"""What engines compute in C++ on CPUs, compiled for the processor at hand."""
