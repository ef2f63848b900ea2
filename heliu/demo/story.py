"""What the acts of the demo share: the stage, the memory and the callers."""

from dataclasses import dataclass, field

from heliu.client import Client
from heliu.demo.actors import Account, Cast, Memory
from heliu.demo.stage import Stage
from heliu.supervisor.ray_cluster import ACCELERATOR, CENTRE
from kit.settings import Settings

POOL = f"{CENTRE}/{ACCELERATOR}"
BASE_MODEL = "smollm2-135m-instruct"


@dataclass(slots=True)
class Story:
    """One telling of the story. Callers are filled in as they appear."""

    settings: Settings
    stage: Stage
    memory: Memory
    anyone: Client
    administrator: Client = field(init=False)
    owner: Client = field(init=False)
    developer: Client = field(init=False)

    @property
    def cast(self) -> Cast:
        """Who plays; remembered between runs."""
        return self.memory.cast

    @property
    def firm_id(self) -> str:
        """The studio's."""
        assert self.cast.firm_id, "the studio applies in the second act"
        return self.cast.firm_id

    def sign_in(self, account: Account) -> Client:
        """A client with a session of this account."""
        session = self.anyone.sessions.sign_in(account.email, account.password)
        return self.anyone.acting_as(session.token)
