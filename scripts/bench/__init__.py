"""The benchmark: declared experiments, measured in paired rounds beside other servers, and the page that shows them."""
