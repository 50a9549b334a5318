"""The commands of `jaxq`, one family a file; what is slow to import is imported where it is used."""
