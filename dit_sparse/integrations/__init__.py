"""Bridges to host libraries; the only files that touch their private interfaces."""
