"""Who is in the stories: names with their pronouns, what kind of creature they are, and what they are like."""

from __future__ import annotations

from .build import nouns, people, rows, with_lists

_GIRLS = people(
    """Mia, Ella, Rosa, Lily, Nora, Ada, Ivy, Clara, Greta, Luna, Mabel, Ruby, Hanna, Freya, Zoe, Alma, Tilda, Anna,
    Daisy, Edith, Frida, Holly, Ines, Juno, Kaya, Lena, Maya, Nina, Opal, Pia, Rhea, Stella""",
    "",
)
_BOYS = people(
    "",
    """Tom, Max, Ben, Leo, Finn, Oscar, Sam, Hugo, Theo, Jack, Noah, Emil, Anton, Felix, Peter, Milo, Jonas, Ravi,
    Omar, Luis, Arlo, Toby, Kofi, Ned, Adam, Bo, Caleb, Dario, Ezra, Fritz, Gabe, Henry""",
)
_CREATURES = people(
    """Nutmeg, Clover, Bramble, Pepper, Hazel, Poppy, Willow, Misty, Dot, Juniper, Tansy, Petal, Minty, Fern, Bluebell, Snowdrop""",
    """Pip, Rusty, Barnaby, Button, Moss, Sprout, Biscuit, Tumble, Acorn, Whisker, Fidget, Bobbin, Pebble, Crumpet, Dandy, Scamp""",
)
FRIEND_NAMES = people(
    """Olga, Penny, Matilda, Wilma, Bertha, Sasha, Tess, Gilda, Minna, Flora, Dora, Maude, Rita, Sylvie, Vera, Yuki,
    Lottie, Nell, Polly, Susan, Agatha, Belinda, Cora, Delia, Esther, Fanny, Gwen, Hilda, Irma, Josie""",
    """Oliver, Percy, Stanley, Walter, Bruno, Sidney, Gus, Archie, Murphy, Albert, Dexter, Monty, Roland, Simon,
    Victor, Yusuf, Lars, Nigel, Quentin, Rufus, Alfred, Boris, Cyril, Desmond, Edgar, Frank, Gordon, Horace, Igor, Julius""",
)
CHILDREN = with_lists(nouns("girl, boy"), {"names": (_GIRLS, _BOYS)})
_ANIMALS = nouns(
    """rabbit, mouse=mice, hedgehog, squirrel, otter, fox=foxes, bear, duck, kitten, frog, penguin, raccoon"""
)
ANIMALS = with_lists(_ANIMALS, {"names": [_CREATURES] * len(_ANIMALS)})
FRIEND_KINDS = nouns(
    """goat, owl, crow, donkey, goose=geese, turtle, mole, beaver, badger, deer=deer, cow, pig, sparrow, puppy, sheep=sheep,
    toad, heron, pony, parrot, rooster, walrus, camel, lizard, weasel, stork, bat, moose=moose, pelican"""
)
ELDERS = people(
    "Grandma Rose, Aunt Hedwig, Mrs. Plum, Miss Olive, Granny Pearl, Mrs. Thistle, Aunt Lulu, Nana Bee, Old Marta, Mrs. Wren, Aunt Philippa, Mrs. Button, Grandma Dove",
    "Grandpa Otto, Uncle Bernard, Mr. Finch, Captain Bell, Grandpa Joe, Mr. Pocket, Uncle Moon, Doctor Crumb, Old Silas, Mr. Oak, Uncle Bertram, Mr. Drizzle, Grandpa Anders",
)
JOBS = rows(
    "- a shop work pay",
    """
    baker | a baker | the bakery | carried flour sacks | for the flour sacks
    cobbler | a cobbler | the shoe shop | polished boots | for the shiny boots
    farmer | a farmer | the farm | fed the hens | for feeding the hens
    gardener | a gardener | the garden gate | pulled weeds | for the weeds
    tailor | a tailor | the tailor shop | sorted buttons | for the sorted buttons
    fisherman | a fisherman | the fishing hut | washed the nets | for the clean nets
    painter | a painter | the paint shop | rinsed brushes | for the clean brushes
    postman | a postman | the post office | stamped letters | for the stamped letters
    miller | a miller | the mill | swept the floor | for the swept floor
    cook | a cook | the kitchen | peeled potatoes | for the peeled potatoes
    clockmaker | a clockmaker | the clock shop | wound the clocks | for winding the clocks
    beekeeper | a beekeeper | the bee garden | labelled honey jars | for the honey jars
    carpenter | a carpenter | the workshop | stacked boards | for the stacked boards
    librarian | a librarian | the library | dusted the books | for the dusted books
    potter | a potter | the pottery | stirred the clay | for stirring the clay
    weaver | a weaver | the weaving house | wound the wool | for winding the wool
    """,
)
# habit: what such a person does; later: what {hero} still did at the end; praise: what others say of it.
TRAITS = rows(
    "- a habit later praise",
    """
    curious | a curious | asked about everything twice | asked three times as many questions as before | It pays to be curious
    careful | a careful | looked left and right before every puddle | looked twice before every puddle | It pays to be careful
    cheerful | a cheerful | whistled even while brushing teeth | whistled louder than ever | A cheerful heart is half the work
    clumsy | a clumsy | could trip over a flat floor | tripped over the mat, and nobody minded | Clumsy feet can still find the way
    shy | a shy | hid behind doors when visitors came | came out from behind the door a little sooner | Shy voices are worth waiting for
    stubborn | a stubborn | never gave up, not even on cold porridge | never gave up on anything again | A stubborn head can be a good head
    dreamy | a dreamy | forgot where things were, even shoes | dreamed bigger dreams than before | Dreamers see what others miss
    brave | a brave | said hello to every big dog | said hello to even bigger dogs | That was very brave
    honest | an honest | told the truth even when it was about jam | told the truth, jam or no jam | An honest word is worth gold
    gentle | a gentle | carried lost beetles home | carried beetles home two at a time | Gentle hands do the best work
    messy | a messy | always had crumbs in both pockets | had twice as many crumbs in both pockets | A little mess can be a lot of luck
    polite | a polite | said good morning to trees | said good morning to trees and to stones as well | Good manners open doors
    impatient | an impatient | could not even wait for soup to cool | learned to wait, at least for soup | Good things take a little time
    clever | a clever | could count the stars backwards | counted the stars forwards, too | That was a clever thing to do
    sleepy | a sleepy | could fall asleep standing up | slept better than ever before | A good rest makes a good head
    noisy | a noisy | sang in the bath and in the cupboard | sang the whole tale in the bath | Some days a loud voice is just right
    generous | a generous | shared everything, even the last bite | shared even more than before | What you give away comes back
    proud | a proud | walked with a very high chin | walked with a slightly lower chin | There is good reason to be proud
    funny | a funny | knew a joke about every vegetable | knew a new joke about it by supper | Laughing makes a heavy load light
    patient | a patient | could watch a snail cross the road | watched snails with even more pleasure | Patience wins in the end
    helpful | a helpful | helped before anyone could ask | helped twice as many neighbours | Many small hands lift a big stone
    fearless | a fearless | climbed everything that stood still | climbed some things that moved | Only the fearless would have tried it
    tidy | a tidy | folded socks into tiny squares | folded even the napkins into squares | A tidy shelf saves a long search
    hungry | a hungry | thought about lunch during breakfast | thought about supper during lunch | A good meal makes good friends
    """,
)
