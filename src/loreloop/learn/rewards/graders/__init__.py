"""learn/rewards/graders: OpenAI's graders and some of ours, one file for each kind; `reading.py` knows them all."""
