"""How models/tiny-vl was made: data, network, training, export, evaluation. Start with README.md beside this file."""
