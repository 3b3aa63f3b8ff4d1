"""The model behind LitServe: ``python lit_server.py PORT`` in this folder."""

# No postponed annotations: LitServe reads a request as what decode_request says that it takes.
import sys
from typing import Any

import litserve
from served_model import load


class Served(litserve.LitAPI):
    """One worker with the model."""

    def setup(self, device: Any) -> None:  # noqa: ARG002
        """Load the model."""
        self._answer = load()

    def decode_request(self, request: dict[str, Any]) -> Any:
        """Take the rows."""
        return request["rows"]

    def predict(self, x: Any) -> Any:
        """Predict rows."""
        return self._answer(x)

    def encode_response(self, output: Any) -> Any:
        """Answer with numbers."""
        return {"predictions": output.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(Served(), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="error")
