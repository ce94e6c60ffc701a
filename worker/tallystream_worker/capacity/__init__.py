"""What counting costs: measured constants (`costs`), and the bytes that each rule of a metric keeps (`footprint`)."""
