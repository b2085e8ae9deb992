"""kdkit: a notebook-first study kit for knowledge distillation."""
