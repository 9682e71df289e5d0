"""What a job is and its durable record; plain data that all layers share. No torch, no Ray."""
