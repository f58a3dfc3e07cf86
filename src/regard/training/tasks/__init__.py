"""What can be learnt: a module a task, each on the one loop of `regard.training.loop`."""
