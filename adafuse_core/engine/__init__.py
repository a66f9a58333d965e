"""Inside the local backend: how forward passes on a Hugging Face model are saved, exactly."""
