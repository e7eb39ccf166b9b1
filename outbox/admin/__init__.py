"""The admin server: a JSON API, a dashboard, health and metrics, for whoever operates the relays.

    guard      what every request must pass: host, origin, token, size; what every answer carries
    connections how long one may take
    api        /api/v1/admin: JSON for programs          ┐
    pages      /: the dashboard                          ├─ ask `figures`, and have `desk` act
    health     /health…, /metrics                        ┘
    desk       what an operator can have done, and the log of who did
    figures    every SQL statement of what is shown
    ledger     what became of rows, by time: read once, kept as sums
    alerts     pure: which figures call for somebody
    overview   what is to be seen at a glance, put together once a second at most
    shapes     what goes over the wire
    words      numbers and spans as people read them; charts: two of them drawn
    metrics    figures in the words of Prometheus
    watch      a thread that asks the destination how it is, and notes how full the outbox is
    app        puts these together

Needs the extra `admin`: `pip install 'outbox-relay[admin]'`.
"""
