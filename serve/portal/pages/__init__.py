"""The pages: each shows what the JSON API answers to whoever looks, and sends to it what is done on the page."""
