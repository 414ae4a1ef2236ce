"""English for the Spider schemas: what a row of a table is called, which column names it, which columns make sense.

Only what cannot be read off the schema stands here. Tables that are missing (pure link tables, empty ones) are never
the subject of a generated question; columns in `skip` hold filler text, flags or numbers that are no quantities.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Words:
    """How questions speak of one table."""

    one: str
    many: str
    label: str
    """The column that names a row."""
    columns: dict[str, str] = field(default_factory=dict)
    """Column -> phrase, where the humanised name would read badly."""
    skip: frozenset[str] = frozenset()


def _words(one: str, many: str, label: str, skip: str = "", **columns: str) -> Words:
    return Words(one, many, label, columns, frozenset(skip.split()))


_PERSON = "street zip_code email_address home_phone cell_number"

WORDS: dict[str, dict[str, Words]] = {
    "concert_singer": {
        "concert": _words("concert", "concerts", "concert_Name", concert_Name="name"),
        "singer": _words(
            "singer", "singers", "Name", "Is_male", Song_Name="song name", Song_release_year="song release year"
        ),
        "stadium": _words(
            "stadium",
            "stadiums",
            "Name",
            Highest="highest attendance",
            Lowest="lowest attendance",
            Average="average attendance",
        ),
    },
    "singer": {
        "singer": _words("singer", "singers", "Name", Net_Worth_Millions="net worth in millions"),
        "song": _words("song", "songs", "Title", Sales="sales figure"),
    },
    "world_1": {
        "city": _words("city", "cities", "Name"),
        "country": _words(
            "country",
            "countries",
            "Name",
            "GNPOld Capital Code2 HeadOfState LocalName",
            IndepYear="year of independence",
            GNP="GNP",
        ),
        "countrylanguage": _words(
            "language record", "language records", "Language", "IsOfficial", Percentage="percentage of speakers"
        ),
    },
    "flight_2": {
        "airlines": _words("airline", "airlines", "Airline", "Country", Airline="name"),
        "airports": _words(
            "airport", "airports", "AirportName", "Country CountryAbbrev", AirportName="name", AirportCode="code"
        ),
        "flights": _words(
            "flight", "flights", "FlightNo", "Airline", FlightNo="flight number", DestAirport="destination airport"
        ),
    },
    "car_1": {
        "car_makers": _words("car maker", "car makers", "FullName", FullName="full name", Maker="short name"),
        "car_names": _words("car", "cars", "Make"),
        "cars_data": _words(
            "car record",
            "car records",
            "Id",
            "MPG Horsepower",
            Edispl="engine displacement",
            Accelerate="acceleration",
            Id="id",
            Cylinders="number of cylinders",
        ),
        "continents": _words("continent", "continents", "Continent", Continent="name"),
        "countries": _words("country", "countries", "CountryName", CountryName="name"),
        "model_list": _words("model", "models", "Model", Model="name"),
    },
    "employee_hire_evaluation": {
        "employee": _words("employee", "employees", "Name"),
        "evaluation": _words("evaluation", "evaluations", "Year_awarded", Year_awarded="award year"),
        "hiring": _words("hiring", "hirings", "Start_from", "Is_full_time", Start_from="start year"),
        "shop": _words("shop", "shops", "Name", Number_products="number of products", Manager_name="manager name"),
    },
    "poker_player": {
        "people": _words("person", "people", "Name"),
        "poker_player": _words(
            "poker player",
            "poker players",
            "Poker_Player_ID",
            Poker_Player_ID="id",
            Final_Table_Made="number of final tables made",
            Earnings="earnings total",
        ),
    },
    "real_estate_properties": {
        "other_available_features": _words(
            "feature",
            "features",
            "feature_name",
            "feature_description",
            feature_type_code="type code",
            feature_name="name",
        ),
        "properties": _words(
            "property",
            "properties",
            "property_name",
            "property_address apt_feature_1 apt_feature_2 date_on_market date_sold",
            property_name="name",
            property_type_code="type code",
        ),
        "ref_property_types": _words(
            "property type",
            "property types",
            "property_type_description",
            property_type_description="description",
            property_type_code="code",
        ),
    },
    "voter_1": {
        "area_code_state": _words("area code", "area codes", "area_code", area_code="code"),
        "contestants": _words("contestant", "contestants", "contestant_name", contestant_name="name"),
        "votes": _words("vote", "votes", "vote_id", "phone_number created", vote_id="id"),
    },
    "tvshow": {
        "cartoon": _words(
            "cartoon",
            "cartoons",
            "Title",
            "Production_code",
            Directed_by="director",
            Written_by="writer",
            Original_air_date="original air date",
        ),
        "tv_channel": _words(
            "TV channel",
            "TV channels",
            "series_name",
            "Content Pixel_aspect_ratio_PAR Hight_definition_TV Pay_per_view_PPV",
        ),
        "tv_series": _words("TV episode", "TV episodes", "Episode", "18_49_Rating_Share Viewers_m", Episode="title"),
    },
    "orchestra": {
        "conductor": _words("conductor", "conductors", "Name", Year_of_Work="number of working years"),
        "orchestra": _words("orchestra", "orchestras", "Orchestra", Orchestra="name", Year_of_Founded="founding year"),
        "performance": _words(
            "performance",
            "performances",
            "Type",
            "Weekly_rank",
            **{"Official_ratings_(millions)": "official rating in millions"},
        ),
        "show": _words("show", "shows", "Show_ID", "Result If_first_show", Show_ID="id"),
    },
    "museum_visit": {
        "museum": _words("museum", "museums", "Name", Num_of_Staff="number of staff", Open_Year="opening year"),
        "visit": _words(
            "visit", "visits", "visitor_ID", Num_of_Ticket="number of tickets", Total_spent="total amount spent"
        ),
        "visitor": _words("visitor", "visitors", "Name", Level_of_membership="membership level"),
    },
    "pets_1": {
        "student": _words("student", "students", "LName", "Advisor Major", LName="last name", Fname="first name"),
        "pets": _words("pet", "pets", "PetID", PetID="id", PetType="type", pet_age="age"),
    },
    "course_teach": {
        "course": _words("course", "courses", "Course", Course="name", Staring_Date="starting date"),
        "teacher": _words("teacher", "teachers", "Name"),
    },
    "network_1": {
        "highschooler": _words("high schooler", "high schoolers", "name"),
        "friend": _words("friendship", "friendships", "friend_id"),
        "likes": _words("like", "likes", "liked_id"),
    },
    "student_transcripts_tracking": {
        "addresses": _words(
            "address",
            "addresses",
            "line_1",
            "line_2",
            line_1="first line",
            zip_postcode="postcode",
            state_province_county="state",
        ),
        "courses": _words("course", "courses", "course_name", "course_description", course_name="name"),
        "degree_programs": _words(
            "degree program",
            "degree programs",
            "degree_program_id",
            "degree_summary_description",
            degree_program_id="id",
            degree_summary_name="summary name",
        ),
        "departments": _words(
            "department", "departments", "department_name", "department_description", department_name="name"
        ),
        "sections": _words("section", "sections", "section_name", "section_description", section_name="name"),
        "semesters": _words("semester", "semesters", "semester_name", "semester_description", semester_name="name"),
        "students": _words(
            "student",
            "students",
            "last_name",
            "ssn cell_mobile_number date_first_registered date_left other_student_details",
        ),
        "student_enrolment": _words("enrolment", "enrolments", "student_enrolment_id", student_enrolment_id="id"),
        "transcripts": _words("transcript", "transcripts", "transcript_id", transcript_id="id"),
    },
    "dog_kennels": {
        "breeds": _words("breed", "breeds", "breed_name", breed_name="name", breed_code="code"),
        "charges": _words("charge", "charges", "charge_type", charge_type="type", charge_amount="amount"),
        "dogs": _words(
            "dog", "dogs", "name", "abandoned_yn gender date_of_birth date_arrived date_adopted date_departed weight"
        ),
        "owners": _words("owner", "owners", "last_name", _PERSON),
        "professionals": _words("professional", "professionals", "last_name", _PERSON),
        "sizes": _words("size", "sizes", "size_description", size_description="description", size_code="code"),
        "treatment_types": _words(
            "treatment type",
            "treatment types",
            "treatment_type_description",
            treatment_type_description="description",
            treatment_type_code="code",
        ),
        "treatments": _words(
            "treatment", "treatments", "treatment_id", "date_of_treatment", treatment_id="id", cost_of_treatment="cost"
        ),
    },
    "cre_Doc_Template_Mgt": {
        "documents": _words("document", "documents", "Document_Name", "Document_Description", Document_Name="name"),
        "paragraphs": _words("paragraph", "paragraphs", "Paragraph_Text", Paragraph_Text="text"),
        "ref_template_types": _words(
            "template type",
            "template types",
            "Template_Type_Description",
            Template_Type_Description="description",
            Template_Type_Code="code",
        ),
        "templates": _words(
            "template",
            "templates",
            "Template_ID",
            "Template_Details Date_Effective_From Date_Effective_To",
            Template_ID="id",
            Template_Type_Code="type code",
        ),
    },
    "battle_death": {
        "battle": _words("battle", "battles", "name"),
        "death": _words("death record", "death records", "note", killed="death toll", injured="injury toll"),
        "ship": _words("ship", "ships", "name", "tonnage", ship_type="type", disposition_of_ship="disposition"),
    },
}


def phrase(words: Words, column: str) -> str:
    """A column in English: ``Song_release_year`` -> ``song release year``, ``CountryCode`` -> ``country code``."""
    if column in words.columns:
        return words.columns[column]
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", column.replace("_", " "))
    return " ".join(spaced.split()).lower()


def plural(text: str) -> str:
    """The plural of a noun phrase: its head noun, which stands before "of" or "in" if there is one, else last."""
    head, joint, tail = text, "", ""
    for preposition in (" of ", " in "):
        if preposition in text:
            head, joint, tail = text.partition(preposition)
            break
    if head.endswith("y") and head[-2:-1] not in "aeiou":
        head = head[:-1] + "ies"
    elif head.endswith(("s", "x", "ch", "sh")):
        head += "es"
    else:
        head += "s"
    return head + joint + tail


LINKS = {
    "concert_singer.concert.Stadium_ID": "held at",
    "singer.song.Singer_ID": "by",
    "world_1.city.CountryCode": "in",
    "flight_2.flights.DestAirport": "arriving at",
    "flight_2.flights.SourceAirport": "departing from",
    "car_1.car_makers.Country": "from",
    "car_1.countries.Continent": "in",
    "car_1.model_list.Maker": "made by",
    "employee_hire_evaluation.hiring.Shop_ID": "at",
    "voter_1.votes.contestant_number": "for",
    "tvshow.cartoon.Channel": "shown on",
    "tvshow.tv_series.Channel": "shown on",
    "orchestra.orchestra.Conductor_ID": "led by",
    "orchestra.performance.Orchestra_ID": "by",
    "museum_visit.visit.Museum_ID": "to",
    "museum_visit.visit.visitor_ID": "by",
    "student_transcripts_tracking.degree_programs.department_id": "offered by",
    "student_transcripts_tracking.student_enrolment.semester_id": "in",
    "student_transcripts_tracking.student_enrolment.degree_program_id": "in",
    "student_transcripts_tracking.students.permanent_address_id": "permanently living at",
    "student_transcripts_tracking.students.current_address_id": "currently living at",
    "dog_kennels.dogs.owner_id": "owned by",
    "dog_kennels.treatments.dog_id": "given to",
    "dog_kennels.treatments.professional_id": "given by",
    "cre_Doc_Template_Mgt.documents.Template_ID": "using",
    "cre_Doc_Template_Mgt.paragraphs.Document_ID": "in",
    "battle_death.ship.lost_in_battle": "lost in",
    "battle_death.death.caused_by_ship_id": "caused by",
    "network_1.friend.student_id": "of",
    "network_1.friend.friend_id": "with",
    "network_1.likes.student_id": "given by",
    "network_1.likes.liked_id": "received by",
}
"""``database.table.column`` of a foreign key -> the words between the row and the row that it points to; else "of"."""

THROUGH = {
    "concert_singer.singer_in_concert": {"Singer_ID": "singing in", "concert_ID": "with"},
    "employee_hire_evaluation.hiring": {"Employee_ID": "hired by", "Shop_ID": "that hired"},
    "real_estate_properties.other_property_features": {"property_id": "with", "feature_id": "of"},
    "museum_visit.visit": {"visitor_ID": "who visited", "Museum_ID": "visited by"},
    "course_teach.course_arrange": {"Teacher_ID": "teaching", "Course_ID": "taught by"},
    "pets_1.has_pet": {"StuID": "who have", "PetID": "of"},
}
"""``database.table`` of a table that links two others -> the words that follow the row to which a foreign key points,
before the row to which the other one does: singers, by their ``Singer_ID``, are "singing in" a concert."""
