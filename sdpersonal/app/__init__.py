"""Serve the app: `backend` works without a page, `page` is the page, `routes` and `server` connect them."""
