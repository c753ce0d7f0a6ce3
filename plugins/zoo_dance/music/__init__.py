"""Music: sound files, features and beats, and a small synthesiser."""
