"""Define the training methods: each says what trains, what its loss is and what it leaves behind."""
