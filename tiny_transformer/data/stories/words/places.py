"""Where the stories happen: each place with the spots in it where something can be lost, hidden or found."""

from __future__ import annotations

from .build import phrases, rows, with_lists, words

_PLACES = rows(
    "in - folk",
    """
    in a small village by the sea | the village | fishermen
    in a deep green forest | the forest | woodpeckers
    on a farm among the hills | the farm | hens
    in a crooked little town | the town | neighbours
    on an island no bigger than a pancake | that little island | seagulls
    in a quiet valley | the valley | shepherds
    in an old mill beside a river | the old mill | ducks
    at the foot of a snowy mountain | the mountain village | goats
    in a harbour full of boats | the harbour | sailors
    in an orchard with a hundred trees | the orchard | bees
    on the shore of a round lake | the lake house | swans
    in the gardens of an empty castle | the castle | peacocks
    in a busy market town | the market town | shopkeepers
    in a wide yellow meadow | the meadow | crickets
    on a slow boat on a long canal | that slow boat | lock keepers
    at the edge of a foggy marsh | the marsh country | frogs
    """,
)
_SPOTS = """
behind the fishing boats/under the pier/beside the lighthouse/among the wet nets/on the sea wall/inside a broken barrel
under a mossy log/between the roots of an oak/beside the fern pond/in a hollow tree/among the mushrooms/behind the fox den
in the hayloft/behind the pig pen/under the tractor/beside the water trough/in the turnip field/inside the old barn
under the clock tower/behind the bakery/on the bridge/beside the fountain/in the narrow lane/among the flower pots
beside the only palm tree/under the upturned boat/among the seashells/behind the big rock/on the sandy beach/in the tide pool
under the stone bridge/in the tall grass/beside the chapel/behind the sheep fence/on the winding path/among the bluebells
under the water wheel/behind the flour sacks/beside the millstone/on the creaky stairs/in the reeds/among the sleeping cats
beside the frozen stream/under a pine tree/behind the woodshed/in the goat cave/on the sledging hill/among the icicles
behind the rope store/under the crane/among the fish crates/on the longest jetty/beside the anchor/in the sail loft
under the oldest apple tree/among the beehives/beside the ladder/in the wheelbarrow/behind the cider press/on the garden wall
in the boathouse/beside the reeds/under the willow/on the flat stones/among the water lilies/behind the picnic table
beside the dry fountain/in the rose maze/under the stone lion/behind the iron gate/on the broad steps/among the statues
under the cheese stall/beside the well/behind the town hall/among the hat boxes/in the pickle shop/on the weighing scales
among the poppies/beside the scarecrow/under a dandelion/behind the haystack/in the rabbit hole/on the crooked stile
beside the lock gate/under the towpath bridge/behind the coal box/on the cabin roof/among the bulrushes/in the rope basket
under the crooked willow/beside the stepping stones/among the cattails/in the old rowing boat/behind the peat shed/on the plank path
"""
PLACES = with_lists(_PLACES, {"spots": [phrases(line.replace("/", "\n")) for line in _SPOTS.strip().splitlines()]})
WINTER = words("frosty, snowy, icy, chilly, dark, grey, silent, white")
SPRING = words("rainy, fresh, breezy, green, drizzly, mild, muddy, sparkling")
SUMMER = words("sunny, hot, golden, lazy, sticky, blue, bright, warm")
AUTUMN = words("foggy, windy, misty, stormy, cloudy, pale, gusty, crisp")
