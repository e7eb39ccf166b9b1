"""The admin server: a JSON API, a dashboard, health and metrics, for the people who operate the relays.

    app         puts the rooms together: one ASGI application
    guard       what every request must pass: host, origin, token, size; what every answer carries
    sessions    the cookie of a browser that has given the token
    protocol    how long a connection may take

    context     what the routes work with, and how each of them gets it
    api         /api/v1/admin: JSON for programs              ┐
    pages       /: the dashboard                              │ read `store.figures`,
    forms       what is posted from there                     │ and act through `service`
    login       where a browser gives the token               │
    health      /health…, /metrics                            ┘

    service     what an operator can do, and the log of who did it
    background  work that goes on after its request was answered
    database    the outbox tables, opened for each request
    poller      a thread that asks the destination how it is, and records the depth of the queue

    overview    everything at a glance, put together once a second at most
    statistics  what became of rows, by time: read once, kept as sums
    alerts      pure: which figures an operator must be told of
    metrics     figures in the words of Prometheus
    shapes      what goes over the wire
    rendering   templates become pages; formats: numbers as people read them; charts: two of them drawn

Needs the extra `admin`: `pip install 'outbox-relay[admin]'`, or `'.[admin]'` in a checkout.
"""
