"""The pure part: fields, spans, plans, splits, tokens and errors, on numpy and the standard library alone."""
