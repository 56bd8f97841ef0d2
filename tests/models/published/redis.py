WHOSE = "the model's"
