"""Pages of studies: tables, figures, statistics."""
