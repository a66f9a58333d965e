"""`adafuse serve`: ensembles behind OpenAI's HTTP interface. `app.create_app` makes the application."""
