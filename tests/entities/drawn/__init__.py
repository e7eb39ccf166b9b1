"""Sets of models that nobody wrote: drawn, mapped, changed in every way a session can, and compared."""
