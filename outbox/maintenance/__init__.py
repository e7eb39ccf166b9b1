"""What keeps the tables small and the relays honest, beside the rows."""

from outbox.maintenance.scheduler import Maintenance

__all__ = ["Maintenance"]
