"""What a person looks at with a notebook: inside a trained model, and a pattern before and while it trains."""
