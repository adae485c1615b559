"""Commands that a running server never imports: export, tune, evaluate, benchmark and rank."""
