"""Fine-tuning jobs as OpenAI's API has them: files, hyperparameters, and the runs behind them."""
