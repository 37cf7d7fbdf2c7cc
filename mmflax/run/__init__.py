"""What the commands do: build, train, evaluate, plan, convert, ablate."""
