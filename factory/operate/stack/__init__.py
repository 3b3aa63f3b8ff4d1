"""The stack: Ray's head, MLflow's server, the controller, the portal and the predictor as supervised processes.

``services.py`` declares them, ``supervisor.py`` keeps them running,
``control.py`` starts, stops and looks at them from outside, and ``records.py``
is what lies in ``FACTORY_HOME/stack`` between these.
"""
