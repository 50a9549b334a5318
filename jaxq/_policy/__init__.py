"""Scheduling policies: what starts its prefill, and where a finished prefill decodes."""
