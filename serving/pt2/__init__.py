"""What an exported program (`pt2`) may say: its texts, its operators and its records, checked before PyTorch reads them."""
