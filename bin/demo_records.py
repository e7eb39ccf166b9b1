"""Records as a CRM might hold them, made up: people, companies, notes and deals of many countries."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


class Country(NamedTuple):
    """What people and companies of a country are called. Words of one string are one name each."""

    name: str
    first_names: str
    last_names: str
    cities: str
    companies: tuple[str, ...]  # {last} and {city} are filled in


COUNTRIES = [
    Country(
        "United Kingdom",
        "Katherine Margaret Oliver Siobhan Callum Imogen Rhys Alistair Harriet Gareth Fiona Desmond",
        "Johnson Whitfield Pemberton MacDonald Llewellyn Ashworth Hargreaves O'Connell Thackeray Sinclair Fairbairn",
        "London Manchester Leeds Bristol Glasgow Cardiff",
        ("{last} & Sons", "{city} Freight", "{last} Instruments"),
    ),
    Country(
        "Germany",
        "Jürgen Annika Matthias Greta Thorsten Friederike Jonas Hannelore Sören Käthe Lukas Mareike",
        "Müller Schröder Weiß Grünwald Hoffmann Krämer Vogelsang Lindemann Böttcher Zimmermann Jäger",
        "Hamburg München Köln Leipzig Stuttgart Bremen",
        ("{last} Maschinenbau", "{last} & Söhne", "{city}er Papierwerke"),
    ),
    Country(
        "Poland",
        "Katarzyna Paweł Małgorzata Zbigniew Agnieszka Tomasz Ewa Grzegorz Joanna Krzysztof",
        "Nowak Wójcik Mazur Krawczyk Wróbel Dudek Pawlak Walczak Gołąb Jabłoń",
        "Warszawa Kraków Gdańsk Wrocław Poznań",
        ("{last} Logistyka", "{city} Stal", "{last} i Wspólnicy"),
    ),
    Country(
        "Spain",
        "José María Íñigo Lucía Joaquín Begoña Álvaro Inés Ramón Nuria Sebastián Pilar",
        "García Fernández Ibáñez Núñez Echeverría Romero Ordóñez Castaño Villanueva Peña",
        "Madrid Sevilla Bilbao Valencia Zaragoza",
        ("Bodegas {last}", "{last} Hermanos", "Naviera de {city}"),
    ),
    Country(
        "France",
        "Hélène François Amélie Théo Geneviève Olivier Éloïse Benoît Chloé Gaël Noémie",
        "Lefèvre Dubois Rousseau Béranger Carpentier Delacroix Fournier Guérin Marchand Thibault",
        "Paris Lyon Nantes Toulouse Strasbourg",
        ("Ateliers {last}", "{last} Frères", "Verrerie de {city}"),
    ),
    Country(
        "Türkiye",
        "Zeynep Mehmet Ayşe Emre Elif Çağlar Defne Burak Gülşen Tarık Şebnem",
        "Yılmaz Demir Öztürk Aydın Çelik Karahan Arslan Erdoğan Koç Şimşek",
        "İstanbul Ankara İzmir Bursa Antalya",
        ("{last} Tekstil", "{city} Lojistik", "{last} Kardeşler"),
    ),
    Country(
        "India",
        "Priya Arjun Lakshmi Rohan Ananya Vikram Meera Sanjay Kavya Harish Deepika",
        "Krishnamurthy Venkataraman Chatterjee Deshpande Mukherjee Iyer Subramanian Patel Bhattacharya Raghavan",
        "Chennai Pune Kolkata Bengaluru Hyderabad",
        ("{last} Software", "{city} Spices", "{last} Pharmaceuticals"),
    ),
    Country(
        "Nigeria",
        "Chidinma Oluwaseun Ngozi Emeka Folake Babatunde Adaeze Ifeanyi Yetunde Tunde",
        "Okonkwo Adeyemi Eze Afolabi Nwachukwu Balogun Ogunleye Chukwuma Obasanjo Olatunji",
        "Lagos Abuja Ibadan Enugu",
        ("{last} Foods", "{city} Cement", "{last} Ventures"),
    ),
    Country(
        "Japan",
        "Haruka Kenji Yumiko Takeshi Sakura Hiroshi Naoko Daisuke Ayumi Ryota",
        "Tanaka Yamamoto Watanabe Kobayashi Fujiwara Matsumoto Nakamura Hashimoto Shimizu Okada",
        "Osaka Kyoto Nagoya Sapporo Fukuoka",
        ("{last} Seiki", "{city} Optical", "{last} Shipping"),
    ),
    Country(
        "Vietnam",
        "Linh Minh Thảo Quang Hương Tuấn Ngọc Đức Phương Khánh",
        "Nguyễn Trần Phạm Hoàng Huỳnh Võ Đặng Bùi",
        "Hanoi Huế Haiphong Saigon",
        ("{last} Coffee", "{city} Garments", "{last} Ceramics"),
    ),
    Country(
        "Brazil",
        "João Beatriz Thiago Larissa Antônio Fernanda Caetano Luísa Otávio Débora",
        "Gonçalves Araújo Magalhães Teixeira Conceição Nascimento Ribeiro Brandão Simões",
        "Recife Curitiba Salvador Manaus",
        ("{last} Alimentos", "Estaleiro {city}", "{last} Energia"),
    ),
    Country(
        "Sweden",
        "Åsa Björn Ingrid Gustav Linnéa Mårten Sigrid Anders Ebba Torbjörn",
        "Lindström Sjöberg Åkesson Hallqvist Nordström Bergman Östlund Wikström Hedlund",
        "Göteborg Malmö Uppsala Umeå",
        ("{last} Skog", "{city} Kullager", "{last} Möbler"),
    ),
]

INDUSTRIES = ["shipping", "food", "textiles", "machines", "software", "energy", "paper", "pharmacy", "retail"]
JOB_TITLES = [
    "Head of Purchasing", "Accountant", "Plant Manager", "Operations Director", "Owner", "Warehouse Lead",
    "IT Administrator", "Quality Engineer", "Chief of Staff", "Export Manager", "Customer Care Lead",
]  # fmt: skip
TOPICS = [
    "the spring delivery", "the new price list", "the service contract", "a second warehouse", "the training days",
    "the customs papers", "last year's complaint", "a trial of forty units", "the move to the harbour site",
]  # fmt: skip
MEETINGS = [
    "Met {first} at the trade fair in {city}.",
    "{first} called about {topic}.",
    "Long lunch with {first}; we talked about {topic} and little else.",
    "Introduced by a colleague in {city}.",
    "{first} answered our letter about {topic} within a day.",
]
WISHES = [
    "Wants an offer for {topic} before the end of the month.",
    "Asked for references from {city}.",
    "Prefers to be called in the morning, never on Fridays.",
    "Decides alone up to twenty thousand, above that the board does.",
    "Will be on leave in August; {topic} can wait until then.",
]
ENDINGS = [
    "",
    "",
    " Send the samples first.",
    " Speaks German and some Portuguese.",
    " Do not mention the old supplier.",
]
DEALS = [
    "Renewal of the service contract", "Forty licences", "Pilot in {city}", "Spare parts for a year",
    "Second assembly line", "Training for the night shift", "Replacement of the scales", "Annual maintenance",
    "Sensors for the cold store",
]  # fmt: skip
STAGES = ["lead", "qualified", "offer", "negotiation", "won", "lost"]


class Chance:
    """Makes records up; the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.randint = self._random.randint

    def choice(self, several: Sequence[T]) -> T:
        return self._random.choice(several)

    def weighted(self, several: Sequence[tuple[float, T]]) -> T:
        """One of them, the likelier the higher the number beside it."""
        return self._random.choices([each for _, each in several], [weight for weight, _ in several])[0]

    def country(self) -> Country:
        return self.choice(COUNTRIES)

    def company(self, country: Country) -> dict[str, Any]:
        city = self.choice(country.cities.split())
        name = self.choice(country.companies).format(last=self.choice(country.last_names.split()), city=city)
        return {
            "name": name,
            "industry": self.choice(INDUSTRIES),
            "city": city,
            "country": country.name,
            "employees": len(name) ** 2 * 7,
        }

    def person(self, company: str, country: Country) -> dict[str, str]:
        """Most people work where they come from, and some do not."""
        home = country if self._random.random() < 0.8 else self.country()
        first, last = self.choice(home.first_names.split()), self.choice(home.last_names.split())
        words = {"first": first, "city": self.choice(country.cities.split()), "topic": self.choice(TOPICS)}
        notes = f"{self.choice(MEETINGS)} {self.choice(WISHES)}{self.choice(ENDINGS)}"
        return {
            "name": f"{first} {last}",
            "email": f"{plain(first)}.{plain(last)}@{plain(company)}.example",
            "job_title": self.choice(JOB_TITLES),
            "notes": notes.format(**words),
        }

    def deal(self, city: str) -> dict[str, Any]:
        return {
            "title": self.choice(DEALS).format(city=city),
            "stage": self.choice(STAGES[:4]),
            "amount": self.randint(2, 180) * 500,
            "closes_on": date(2026, 1, 1) + timedelta(days=self.randint(0, 364)),
        }


def plain(name: str) -> str:
    """What an address can have of a name."""
    spelt = name.lower().replace("ß", "ss").translate(str.maketrans("łıđ", "lid"))
    return "".join(c for c in unicodedata.normalize("NFD", spelt) if c.isascii() and c.isalnum())
