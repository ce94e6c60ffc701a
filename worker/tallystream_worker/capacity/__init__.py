"""States what counting costs: measured constants (`costs`), and the bytes that each rule keeps (`footprint`)."""
