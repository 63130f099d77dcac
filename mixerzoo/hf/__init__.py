"""The Hugging Face adapter: what lets Trainer run a mixerzoo decoder."""
