"""The words of the sentiment and topic questions."""

from __future__ import annotations

POSITIVE = """good great tasty friendly clean lovely helpful quick fresh cosy superb pleasant
    reliable elegant charming bright splendid brilliant delightful generous honest warm
    polished thrilling""".split()
NEGATIVE = """bad awful bland rude dirty noisy useless sluggish stale cramped terrible nasty
    broken ugly dull dreadful horrible boring annoying greedy shabby clumsy tedious
    faulty""".split()
NEUTRAL = """wooden blue square metal round local weekly printed brown rectangular indoor digital
    striped foreign seasonal portable grey vertical hourly circular electric northern plastic
    annual""".split()
ASPECTS = """food service room staff phone screen battery film plot music hotel breakfast bed view
    camera sound book ending waiter price""".split()
INTENSIFIERS = "very really quite extremely rather truly".split()

TOPIC_WORDS: dict[str, list[str]] = {
    "sports": """goal striker match coach referee tournament stadium defender league penalty sprint
        medal athlete racket wicket""".split(),
    "business": """market shares profit investor bank merger stock revenue company dividend tax
        loan trader budget invoice""".split(),
    "science": """telescope molecule experiment atom laboratory galaxy genome particle physicist
        theory microscope fossil orbit enzyme neutron""".split(),
    "politics": """election senate minister parliament vote treaty ballot president policy campaign
        mayor embassy law debate coalition""".split(),
    "health": """doctor vaccine patient hospital surgery fever clinic nurse virus symptom therapy
        medicine pulse allergy wound""".split(),
    "travel": """airport passport hotel beach luggage tourist flight cruise visa resort map suitcase
        ferry voyage itinerary""".split(),
    "music": """guitar melody concert orchestra singer piano drummer chord album violin choir rhythm
        opera song trumpet""".split(),
    "cooking": """recipe oven flour butter sauce chef pan spice dough garlic soup onion kettle
        kitchen spoon""".split(),
    "weather": """storm rain cloud thunder snow wind forecast fog drought hail frost breeze
        lightning sunshine humidity""".split(),
    "technology": """computer software robot laptop server keyboard website processor code app
        network password battery browser chip""".split(),
    "law": """lawyer judge verdict witness trial jury crime prison appeal evidence statute
        lawsuit sentence clause bail""".split(),
    "farming": """tractor harvest barn cattle seed plough orchard wheat fertiliser shepherd field
        crop hay pasture irrigation""".split(),
}
