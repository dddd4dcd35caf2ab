"""The commands in groups: each reads options, calls the library and prints."""
