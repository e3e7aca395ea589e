"""How a model is cut over processes. Plans know what a decoder is made of; a decoder does not know that it is cut."""
