"""Facts about countries."""

from __future__ import annotations

from tools.train_demo.relations import groups, pairs

CAPITALS = pairs("""
    France:Paris Italy:Rome Spain:Madrid Portugal:Lisbon Germany:Berlin Austria:Vienna
    Poland:Warsaw Hungary:Budapest Greece:Athens Turkey:Ankara Egypt:Cairo Kenya:Nairobi
    Japan:Tokyo China:Beijing India:Delhi Nepal:Kathmandu Thailand:Bangkok Vietnam:Hanoi
    Russia:Moscow Ukraine:Kyiv Sweden:Stockholm Norway:Oslo Finland:Helsinki Denmark:Copenhagen
    Ireland:Dublin Belgium:Brussels Netherlands:Amsterdam Switzerland:Bern Romania:Bucharest
    Bulgaria:Sofia Serbia:Belgrade Croatia:Zagreb Iceland:Reykjavik Canada:Ottawa Cuba:Havana
    Peru:Lima Chile:Santiago Ecuador:Quito Colombia:Bogota Venezuela:Caracas Brazil:Brasilia
    Uruguay:Montevideo Australia:Canberra Morocco:Rabat Algeria:Algiers Tunisia:Tunis
    Libya:Tripoli Ghana:Accra Nigeria:Abuja Senegal:Dakar Uganda:Kampala Angola:Luanda
    Zambia:Lusaka Iran:Tehran Iraq:Baghdad Syria:Damascus Lebanon:Beirut Jordan:Amman
    Pakistan:Islamabad Bangladesh:Dhaka Indonesia:Jakarta Philippines:Manila Latvia:Riga
    Estonia:Tallinn Lithuania:Vilnius Slovakia:Bratislava Albania:Tirana Slovenia:Ljubljana
    Cyprus:Nicosia Malta:Valletta Georgia:Tbilisi Armenia:Yerevan Qatar:Doha Oman:Muscat
    Laos:Vientiane Rwanda:Kigali Mali:Bamako Namibia:Windhoek Zimbabwe:Harare Bolivia:Sucre
    Jamaica:Kingston Bahamas:Nassau""")

CONTINENTS = groups(
    Europe="""France Italy Spain Portugal Germany Austria Poland Hungary Greece Ukraine Sweden
        Norway Finland Denmark Ireland Belgium Netherlands Switzerland Romania Bulgaria Serbia
        Croatia Iceland Latvia Estonia Lithuania Slovakia Albania Slovenia Malta""",
    Africa="""Egypt Kenya Morocco Algeria Tunisia Libya Ghana Nigeria Senegal Uganda Angola Zambia
        Rwanda Mali Namibia Zimbabwe""",
    Asia="""Japan China India Nepal Thailand Vietnam Iran Iraq Syria Lebanon Jordan Pakistan
        Bangladesh Indonesia Philippines Qatar Oman Laos""",
    America="""Canada Cuba Peru Chile Ecuador Colombia Venezuela Brazil Uruguay Bolivia Jamaica
        Bahamas""",
)

LANGUAGES = pairs("""
    France:French Italy:Italian Spain:Spanish Portugal:Portuguese Germany:German Austria:German
    Poland:Polish Hungary:Hungarian Greece:Greek Turkey:Turkish Egypt:Arabic Japan:Japanese
    China:Chinese Thailand:Thai Vietnam:Vietnamese Russia:Russian Ukraine:Ukrainian
    Sweden:Swedish Norway:Norwegian Finland:Finnish Denmark:Danish Netherlands:Dutch
    Romania:Romanian Bulgaria:Bulgarian Serbia:Serbian Croatia:Croatian Iceland:Icelandic
    Cuba:Spanish Peru:Spanish Chile:Spanish Colombia:Spanish Brazil:Portuguese Australia:English
    Algeria:Arabic Iran:Persian Iraq:Arabic Syria:Arabic Latvia:Latvian Estonia:Estonian
    Lithuania:Lithuanian Slovakia:Slovak Albania:Albanian Angola:Portuguese Nepal:Nepali
    Jamaica:English Armenia:Armenian Georgia:Georgian Indonesia:Indonesian""")

CURRENCIES = pairs("""
    Japan:yen China:yuan India:rupee Nepal:rupee Pakistan:rupee Thailand:baht Vietnam:dong
    Russia:rouble Poland:zloty Hungary:forint Denmark:krone Norway:krone Sweden:krona
    Iceland:krona Turkey:lira Switzerland:franc Canada:dollar Australia:dollar Jamaica:dollar
    Egypt:pound Brazil:real Peru:sol Chile:peso Cuba:peso Colombia:peso Kenya:shilling
    Uganda:shilling Iraq:dinar Jordan:dinar Algeria:dinar France:euro Italy:euro Spain:euro
    Germany:euro Greece:euro Finland:euro Ireland:euro Romania:leu Ghana:cedi
    Nigeria:naira Zambia:kwacha Iran:rial Oman:rial Morocco:dirham""")
