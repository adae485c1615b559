"""WordPiece in C++, for the words that BERT's normalisation leaves as they are."""
