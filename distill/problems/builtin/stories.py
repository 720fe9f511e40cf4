"""Stories of the `gsm` family, in distribution: two to five steps, present or past."""

from distill.problems.builtin.storytelling import Story, fixed, part

GAIN = (
    "{X} now has {e} {things}. | That makes {e} {things}. | So there are {e} {things}. | "
    "Adding them gives {e} {things}. | {X} then has {e} {things}. | "
    "In total that is {e} {things}."
)
LOSE = (
    "{X} has {e} {things} left. | That leaves {e} {things}. | So {e} {things} are left. | "
    "Taking them away leaves {e} {things}. | {X} now has {e} {things}. | "
    "Then {e} {things} remain."
)
GROUPS = (
    "The {bags} hold {e} {things}. | There are {e} {things} in the {bags}. | "
    "{a} {bags} of {b} make {e} {things}. | In the {bags} that is {e} {things}. | "
    "All the {bags} together have {e} {things}."
)
HALF = (
    "Half of them is {e} {things}. | Half of that is {e} {things}. | "
    "Dividing by 2 gives {e} {things}."
)
TIMES = (
    "On the second day it is {e} {things}. | The second number is {e} {things}. | "
    "Then {X} gets {e} {things}. | Multiplying gives {e} {things}."
)
BOTH = (
    "Both days together give {e} {things}. | Together that is {e} {things}. | "
    "In both days {he} gets {e} {things}. | The total is {e} {things}."
)
EACH = (
    "Each one gets {e} {things}. | Sharing them gives {e} {things} each. | "
    "That is {e} {things} for each one. | "
    "Dividing equally gives {e} {things} each."
)
MISSING = (
    "{X} needs {e} more {things}. | The missing part is {e} {things}. | "
    "So {e} {things} are still needed. | "
    "{X} still needs {e} {things}."
)
EARN = (
    "Selling them brings {e} dollars. | {X} gets {e} dollars. | That is worth {e} dollars. | "
    "{X} makes {e} dollars."
)
COST = (
    "They cost {e} dollars. | That costs {e} dollars. | {X} pays {e} dollars for them. | "
    "The price is {e} dollars."
)
MORE_MONEY = (
    "{X} now has {e} dollars. | That makes {e} dollars. | So {he} has {e} dollars. | "
    "In total that is {e} dollars."
)
LESS_MONEY = (
    "{X} has {e} dollars left. | That leaves {e} dollars. | So {e} dollars are left. | "
    "Now {he} has {e} dollars."
)

COLLECTION = Story(
    things=("stickers", "cards", "marbles", "coins", "shells", "stamps", "beads", "toys"),
    bags=("boxes", "bags", "packs", "jars"),
    opening=(
        part("t=a", "{X} has {a} {things} | {X} starts with {a} {things} | {X} owns {a} {things}"),
        part(
            "t=a*b",
            "{X} has {a} {bags} with {b} {things} in each | "
            "{X} keeps {a} {bags} of {b} {things} each",
            GROUPS,
        ),
        part(
            "t=a+b",
            "{X} has {a} old {things} and {b} new ones | {X} has {a} red {things} and {b} blue "
            "{things}",
            GAIN,
        ),
        part(
            "u=a*b t=a+u",
            "{X} finds {a} {things} on Monday and {b} times as many on Tuesday",
            TIMES,
            BOTH,
        ),
        part(
            "u=a/2 t=a+u",
            "{X} gets {a} {things} on Monday and half as many on Tuesday",
            HALF,
            BOTH,
        ),
        part(
            "u=a+b t=a+u",
            "{X} has {a} {things}. {Y} has {b} more than {X} and gives all of them to {X}",
            "{Y} has {e} {things}. | The number of {Y} is {e} {things}. | "
            "{b} more than {a} is {e} {things}.",
            GAIN,
        ),
    ),
    events=(
        part(
            "t=t+a",
            "{he} buys {a} more {things} | {he} finds {a} more {things} | "
            "{Y} gives {him} {a} {things} | "
            "{he} wins {a} {things} in a game | {he} gets {a} {things} from {Y}",
            GAIN,
        ),
        part(
            "t=t-a",
            "{he} gives {a} {things} to {Y} | {he} loses {a} of them | {he} sells {a} {things} | "
            "{he} gives away {a} {things} | {he} trades {a} of them for a book",
            LOSE,
        ),
        part(
            "u=a*b t=t+u",
            "{he} buys {a} {bags} with {b} {things} each | {he} gets {a} {bags} of {b} {things}",
            GROUPS,
            GAIN,
        ),
        part(
            "u=a*b t=t-u",
            "{he} gives {b} {things} to each of {a} friends | {a} friends take {b} {things} each",
            "The friends get {e} {things}. | {a} friends with {b} each take {e} {things}. | "
            "{X} gives away {e} {things}.",
            LOSE,
        ),
        part("t=t/2", "{he} gives half of the {things} to {Y} | {he} sells half of them", HALF),
    ),
    closing=(
        part(
            "",
            "",
            ask="how many {things} does {X} have now? | how many {things} does {X} have in the "
            "end? | "
            "what is the number of {things} that {X} has? | how many {things} does {he} have?",
        ),
        part(
            "t=t/a",
            "{he} puts them equally into {a} {bags} | {he} sorts them into {a} equal {bags}",
            "Each holds {e} {things}. | That is {e} {things} in each. | "
            "Dividing gives {e} {things}.",
            ask="how many {things} are in each of the {bags}? | how many {things} does each hold?",
        ),
        part(
            "t=t/a",
            "{he} shares them equally among {a} friends | {a} friends share all of them equally",
            EACH,
            ask="how many {things} does each friend get? | how many {things} does each one get?",
        ),
        part(
            "t=t*a",
            "{he} sells each of them for {a} dollars | each of them is worth {a} dollars",
            EARN,
            ask="how many dollars does {X} get for all? | how many dollars are they worth?",
        ),
        part(
            "t=a-t",
            "{he} wants to have {a} {things} | {his} goal is {a} {things}",
            MISSING,
            ask="how many more {things} does {X} need? | how many {things} are missing?",
        ),
    ),
    steps=(2, 2, 3, 3, 4, 5),
)

KITCHEN = Story(
    things=("cookies", "muffins", "cakes", "pies", "rolls", "buns", "candies", "sandwiches"),
    bags=("trays", "plates", "boxes"),
    opening=(
        part(
            "t=a*b",
            "{X} bakes {a} {bags} of {b} {things} | {X} makes {a} {bags} with {b} {things} on each",
            GROUPS,
        ),
        part("t=a", "{X} bakes {a} {things} | {X} makes {a} {things} for a party"),
        part(
            "t=a+b",
            "{X} bakes {a} {things} in the morning and {b} in the evening | "
            "{X} makes {a} sweet {things} and {b} plain ones",
            "{X} makes {e} {things}. | Together that is {e} {things}. | "
            "In all there are {e} {things}.",
        ),
        part(
            "u=a-b t=a+u",
            "{X} bakes {a} {things} on Friday and {b} fewer on Saturday",
            "On Saturday {he} bakes {e} {things}. | {b} fewer is {e} {things}. | "
            "Saturday gives {e} {things}.",
            BOTH,
        ),
    ),
    events=(
        part(
            "t=t-a",
            "{his} family eats {a} {things} | {he} burns {a} of them | {he} sells {a} {things} | "
            "{Y} eats {a} of them | {he} drops {a} {things}",
            LOSE,
        ),
        part("t=t+a", "{he} makes {a} more {things} | {Y} brings {a} {things}", GAIN),
        part(
            "u=a*b t=t-u",
            "{a} children eat {b} {things} each | {he} sends {b} {things} to each of {a} neighbors",
            "They take {e} {things}. | That uses {e} {things}. | {a} times {b} is {e} {things}.",
            LOSE,
        ),
        part(
            "u=a*b t=t+u",
            "{he} adds {a} {bags} of {b} {things}",
            GROUPS,
            GAIN,
        ),
        part("t=t/2", "{he} freezes half of them and keeps the rest on the table", HALF),
    ),
    closing=(
        part(
            "",
            "",
            ask="how many {things} are there now? | how many {things} does {X} have in the end? | "
            "what is the number of {things} on the table?",
        ),
        part(
            "t=t/a",
            "{he} packs them in boxes of {a}",
            "{X} needs {e} boxes. | {he} fills {e} boxes. | Dividing by {a} gives {e} boxes. | "
            "That makes {e} boxes.",
            ask="how many boxes does {X} fill? | how many boxes are needed?",
        ),
        part(
            "t=t*a",
            "{he} sells them for {a} dollars each",
            EARN,
            ask="how much money does {X} make? | how many dollars does {X} get?",
        ),
        part(
            "t=t/a",
            "{a} guests share them equally",
            EACH,
            ask="how many {things} does each guest get? | how many {things} does each of them eat?",
        ),
    ),
    steps=(2, 3, 3, 4, 5),
)

GARDEN = Story(
    things=("apples", "pears", "carrots", "tomatoes", "peppers", "plums", "flowers", "eggs"),
    bags=("baskets", "rows", "crates"),
    opening=(
        part(
            "t=a*b",
            "{X} picked {a} {bags} of {b} {things} | there were {a} {bags} with {b} {things} "
            "on the farm of {X}",
            GROUPS,
        ),
        part("t=a", "{X} picked {a} {things} | {X} had {a} {things} on {his} farm"),
        part(
            "u=a*b t=a+u",
            "{X} picked {a} {things} and {Y} picked {b} times as many, and they put them all "
            "together",
            "{Y} picked {e} {things}. | The number of {Y} is {e} {things}. | {Y} has {e} {things}.",
            "Together they have {e} {things}. | They picked {e} {things} in all. | "
            "The sum is {e} {things}.",
        ),
        part(
            "u=a-b t=a+u",
            "{X} picked {a} {things} and {Y} picked {b} fewer, and they put them all together",
            "{Y} picked {e} {things}. | {b} fewer than {a} is {e} {things}. | "
            "{Y} has {e} {things}.",
            "Together they have {e} {things}. | They picked {e} {things} in all. | "
            "The sum is {e} {things}.",
        ),
        part(
            "u=a*b;v=c*d t=u+v",
            "{X} planted {a} rows of {b} {things} and {Y} planted {c} rows of {d} {things} "
            "beside them",
            "{X} planted {e} {things}. | {a} rows of {b} are {e} {things}. | "
            "The part of {X} has {e} {things}.",
            "{Y} planted {e} {things}. | {c} rows of {d} are {e} {things}. | "
            "The part of {Y} has {e} {things}.",
            "Together there are {e} {things}. | Both parts have {e} {things}. | "
            "The sum is {e} {things}.",
        ),
    ),
    events=(
        part(
            "t=t-a",
            "{a} of them were bad | birds ate {a} {things} | {he} sold {a} {things} | "
            "{he} used {a} {things} for dinner | rabbits took {a} of them",
            "That left {e} {things}. | So {e} {things} were left. | "
            "Then {e} {things} remained. | "
            "Without those there were {e} {things}.",
        ),
        part(
            "t=t+a",
            "{he} picked {a} more {things} | {Y} brought {a} {things} | "
            "{he} found {a} more {things}",
            "That made {e} {things}. | Then there were {e} {things}. | "
            "So the number grew to {e} {things}. | Adding gives {e} {things}.",
        ),
        part(
            "u=a*b t=t-u",
            "{he} gave {b} {things} to each of {a} neighbors | "
            "{he} sold {a} bags with {b} {things} each",
            "That took {e} {things}. | {a} times {b} is {e} {things}. | "
            "{he} gave away {e} {things}.",
            "That left {e} {things}. | So {e} {things} were left. | Then {e} {things} remained.",
        ),
        part("t=t/2", "{he} sold half of them | half of them were eaten", HALF),
    ),
    closing=(
        part(
            "",
            "",
            ask="how many {things} were there in the end? | how many {things} remained? | "
            "how many {things} did {X} have then?",
        ),
        part(
            "t=t/a",
            "{he} put the rest equally into {a} {bags} | {he} placed all of them in {a} equal "
            "{bags}",
            "Each has {e} {things}. | That is {e} {things} in each. | Dividing gives {e} {things}.",
            ask="how many {things} were in each of the {bags}? | "
            "how many {things} did each of them hold?",
        ),
        part(
            "t=t/a",
            "{he} put {a} {things} in each bag",
            "{X} needed {e} bags. | {he} filled {e} bags. | Dividing by {a} gives {e} bags.",
            ask="how many bags did {X} fill? | how many bags were needed?",
        ),
        part(
            "t=t*a",
            "each one was sold for {a} dollars",
            "They brought {e} dollars. | {X} got {e} dollars. | The price was {e} dollars.",
            ask="how many dollars did {X} get? | how much money did {X} earn?",
        ),
    ),
    steps=(2, 3, 3, 4, 5),
)

MONEY = Story(
    things=("books", "shirts", "hats", "pens", "games", "balls", "cups", "lamps"),
    bags=("weeks", "days", "hours"),
    opening=(
        part(
            "t=a*b",
            "{X} works {a} hours and earns {b} dollars an hour | "
            "{X} earns {b} dollars a day for {a} days | "
            "{X} saves {b} dollars a week for {a} weeks",
            "{X} earns {e} dollars. | The work brings {e} dollars. | "
            "{a} times {b} is {e} dollars. | {he} gets {e} dollars.",
        ),
        part(
            "t=a", "{X} has {a} dollars | {X} has saved {a} dollars | {X} gets {a} dollars from {Y}"
        ),
        part(
            "u=a*b;v=c*d t=u+v",
            "{X} washes {a} cars for {b} dollars each and walks {c} dogs for {d} dollars each",
            "The cars bring {e} dollars. | Washing cars gives {e} dollars. | "
            "For the cars {he} gets {e} dollars.",
            "The dogs bring {e} dollars. | Walking dogs gives {e} dollars. | "
            "For the dogs {he} gets {e} dollars.",
            "Together {he} earns {e} dollars. | In total that is {e} dollars. | "
            "{X} gets {e} dollars in all.",
        ),
        part(
            "u=a+b t=a+u",
            "{X} earns {a} dollars in May and {b} dollars more in June",
            "In June {he} earns {e} dollars. | June brings {e} dollars. | "
            "{b} more than {a} is {e} dollars.",
            "Both months give {e} dollars. | Together that is {e} dollars. | "
            "The sum is {e} dollars.",
        ),
    ),
    events=(
        part(
            "t=t-a",
            "{he} spends {a} dollars on food | {he} buys a toy for {a} dollars | "
            "{he} gives {a} dollars to {Y} | "
            "{he} pays {a} dollars for a ticket",
            LESS_MONEY,
        ),
        part(
            "t=t+a",
            "{his} mother gives {him} {a} dollars | {he} earns {a} more dollars | "
            "{he} finds {a} dollars | "
            "{he} gets {a} dollars for {his} birthday",
            MORE_MONEY,
        ),
        part(
            "u=a*b t=t-u",
            "{he} buys {a} {things} for {b} dollars each | "
            "{he} buys {a} {things} that cost {b} dollars each",
            COST,
            LESS_MONEY,
        ),
        part(
            "u=a*b t=t+u",
            "{he} sells {a} {things} for {b} dollars each | "
            "{he} works {a} more hours for {b} dollars an hour",
            "That brings {e} dollars. | {he} gets {e} dollars for it. | "
            "{a} times {b} is {e} dollars.",
            MORE_MONEY,
        ),
        part(
            "t=t/2",
            "{he} spends half of {his} money | {he} gives half of the money to {Y}",
            "Half of it is {e} dollars. | Half of that is {e} dollars. | "
            "Dividing by 2 gives {e} dollars.",
        ),
    ),
    closing=(
        part(
            "",
            "",
            ask="how much money does {X} have now? | how many dollars does {X} have? | "
            "how many dollars does {X} have in the end?",
        ),
        part(
            "t=a-t",
            "a bike costs {a} dollars | {he} wants a coat that costs {a} dollars",
            "{X} needs {e} dollars more. | The missing part is {e} dollars. | "
            "So {e} dollars are still needed.",
            ask="how many more dollars does {X} need? | how much money is missing?",
        ),
        part(
            "t=t/a",
            "{he} buys as many {things} as {he} can for {a} dollars each",
            "{X} can buy {e} {things}. | That pays for {e} {things}. | "
            "Dividing by {a} gives {e} {things}.",
            ask="how many {things} does {X} get? | how many {things} does {he} buy?",
        ),
        part(
            "t=t/a",
            "{he} shares the money equally among {a} people",
            "Each person gets {e} dollars. | That is {e} dollars for each. | "
            "Sharing gives {e} dollars each.",
            ask="how many dollars does each person get? | how much money does each one get?",
        ),
    ),
    steps=(2, 3, 3, 4, 5),
)

PEOPLE = Story(
    things=("people", "children", "students", "guests", "visitors", "players"),
    bags=("park", "hall", "school", "bus", "museum", "camp"),
    opening=(
        part(
            "t=a",
            "there are {a} {things} | a bus brings {a} {things} | {a} {things} come to the party",
        ),
        part(
            "t=a*b",
            "there are {a} tables with {b} {things} at each | "
            "{a} cars with {b} {things} each come to the party",
            "That is {e} {things}. | At first there are {e} {things}. | "
            "{a} times {b} is {e} {things}.",
        ),
        part(
            "t=a+b",
            "there are {a} young {things} and {b} old ones | "
            "{a} {things} stand outside and {b} sit inside",
            "That is {e} {things}. | At first there are {e} {things}. | "
            "Together there are {e} {things}.",
        ),
    ),
    events=(
        part(
            "t=t+a",
            "{a} more {things} come | {a} {things} join them | {Y} brings {a} more {things}",
            "Now there are {e} {things}. | That makes {e} {things}. | "
            "With them there are {e} {things}. | The number grows to {e} {things}.",
        ),
        part(
            "t=t-a",
            "{a} {things} leave | {a} of them go home | {X} takes {a} {things} home",
            "Now there are {e} {things}. | That leaves {e} {things}. | So {e} {things} stay. | "
            "Then {e} {things} remain.",
        ),
        part(
            "u=a*b t=t+u",
            "{a} cars with {b} {things} each come | {a} groups of {b} {things} join them",
            "They bring {e} {things}. | {a} times {b} is {e} {things}. | That is {e} new {things}.",
            "Now there are {e} {things}. | That makes {e} {things}. | "
            "With them there are {e} {things}.",
        ),
        part(
            "u=a*b t=t-u",
            "{a} cars with {b} {things} each leave | {a} groups of {b} {things} go home",
            "They take away {e} {things}. | {a} times {b} is {e} {things}. | "
            "That is {e} {things} who go.",
            "Now there are {e} {things}. | That leaves {e} {things}. | So {e} {things} stay.",
        ),
        part("t=t/2", "half of them go home | half of the {things} leave", HALF),
    ),
    closing=(
        part(
            "",
            "",
            ask="how many {things} are there now? | how many {things} are there in the end? | "
            "how many {things} are still there?",
        ),
        part(
            "t=t/a",
            "they form teams of {a} | they sit at tables of {a}",
            "They make {e} groups. | Dividing by {a} gives {e} groups. | "
            "There are {e} groups of {a}.",
            ask="how many groups are there? | how many groups do they make?",
        ),
        part(
            "t=t*a",
            "each of them pays {a} dollars | each of them gives {a} dollars",
            "They pay {e} dollars. | All of them give {e} dollars. | Together that is {e} dollars.",
            ask="how many dollars is that in all? | how much money do they pay together?",
        ),
    ),
    steps=(2, 2, 3, 3, 4),
)

READING = Story(
    things=("pages", "pages", "letters", "problems", "lines"),
    bags=("days", "hours"),
    opening=(
        part(
            "t=a-b",
            "{X} has to finish {a} {things} and does {b} of them on Monday",
            "After Monday {e} {things} are left. | That leaves {e} {things}. | "
            "So {e} {things} remain.",
        ),
        part(
            "u=b*c t=a-u",
            "{X} has to finish {a} {things} and does {b} {things} a day for {c} days",
            "In {c} days {he} does {e} {things}. | {X} does {e} {things}. | "
            "{b} times {c} is {e} {things}.",
            "That leaves {e} {things}. | So {e} {things} remain. | Then {e} {things} are left.",
        ),
        part(
            "u=a+b t=a+u",
            "{X} did {a} {things} on Monday and {b} more than that on Tuesday",
            "On Tuesday {he} did {e} {things}. | Tuesday gives {e} {things}. | "
            "{b} more than {a} is {e} {things}.",
            BOTH,
        ),
        part(
            "t=a*b",
            "{X} does {a} {things} an hour for {b} hours | "
            "{X} does {a} {things} a day for {b} days",
            "{X} does {e} {things}. | {a} times {b} is {e} {things}. | "
            "In that time {he} does {e} {things}.",
        ),
    ),
    events=(
        part(
            "t=t+a",
            "the teacher of {X} adds {a} {things} | {Y} gives {him} {a} more {things}",
            "Now it is {e} {things}. | That makes {e} {things}. | "
            "The number grows to {e} {things}.",
        ),
        part(
            "t=t-a",
            "{Y} takes {a} of the {things} away | {a} of the {things} do not count",
            "Now it is {e} {things}. | That leaves {e} {things}. | "
            "Without those there are {e} {things}.",
        ),
        part("t=t/2", "{Y} takes half of them | half of the {things} do not count", HALF),
    ),
    closing=(
        part(
            "", "", ask="how many {things} is that now? | how many {things} are there in the end?"
        ),
        part(
            "t=t/a",
            "{he} cuts this number of {things} into {a} equal parts",
            "Each part has {e} {things}. | That is {e} {things} in a part. | "
            "Dividing by {a} gives {e} {things}.",
            ask="how many {things} are in each part? | how many {things} does a part have?",
        ),
        part(
            "t=t*a",
            "{he} gets {a} points for each of them",
            "{X} gets {e} points. | That gives {e} points. | The sum is {e} points.",
            ask="how many points does {X} get? | how many points is that in all?",
        ),
    ),
    steps=(2, 3, 3, 4),
)

SHOP = Story(
    things=("apples", "cakes", "flowers", "pens", "tickets", "shirts"),
    bags=("books", "hats", "balls", "cups", "plates"),
    opening=(
        part(
            "u=a*b;v=c*d t=u+v",
            "{X} buys {a} {things} for {b} dollars each and {c} {bags} for {d} dollars each | "
            "at the shop {X} takes {a} {things} at {b} dollars each and {c} {bags} at {d} "
            "dollars each",
            "The {things} cost {e} dollars. | {X} pays {e} dollars for the {things}. | "
            "{a} {things} cost {e} dollars.",
            "The {bags} cost {e} dollars. | {X} pays {e} dollars for the {bags}. | "
            "{c} {bags} cost {e} dollars.",
            "Together that costs {e} dollars. | The whole price is {e} dollars. | "
            "In total that is {e} dollars.",
        ),
        part(
            "u=a*b t=u+c",
            "{X} buys {a} {things} for {b} dollars each and a bag for {c} dollars | "
            "{X} pays {c} dollars for a bag and buys {a} {things} at {b} dollars each",
            "The {things} cost {e} dollars. | {X} pays {e} dollars for the {things}. | "
            "{a} {things} cost {e} dollars.",
            "With the bag that is {e} dollars. | The whole price is {e} dollars. | "
            "Together that costs {e} dollars.",
        ),
        part(
            "u=a-b t=a+u",
            "a box of {things} costs {a} dollars and a box of {bags} costs {b} dollars less. "
            "{X} buys one of each",
            "The {bags} cost {e} dollars. | {b} dollars less is {e} dollars. | "
            "The second price is {e} dollars.",
            "Together that costs {e} dollars. | The whole price is {e} dollars. | "
            "Both cost {e} dollars.",
        ),
    ),
    events=(
        part(
            "t=t-a",
            "the shop takes {a} dollars off the price | {he} has a card that saves {a} dollars",
            "The price is now {e} dollars. | That leaves {e} dollars to pay. | "
            "So {he} pays {e} dollars.",
        ),
        part(
            "t=t+a",
            "{he} pays {a} dollars more for a big box | the way home costs {a} dollars",
            "Now it is {e} dollars. | That makes {e} dollars. | The price grows to {e} dollars.",
        ),
    ),
    closing=(
        part(
            "",
            "",
            ask="how many dollars does {X} pay in all? | how much money does {X} need? | "
            "what does it cost in all?",
        ),
        part(
            "t=a-t",
            "{he} pays with {a} dollars | {X} has {a} dollars at first",
            "{X} gets {e} dollars back. | So {e} dollars are left. | The change is {e} dollars.",
            ask="how many dollars are left? | how many dollars does {X} have after that?",
        ),
        part(
            "t=t/a",
            "{a} friends share the price equally | {X} and {his} friends are {a} people and "
            "share the price",
            "Each one pays {e} dollars. | That is {e} dollars for each. | "
            "Dividing by {a} gives {e} dollars.",
            ask="how many dollars does each one pay? | how much does each of them pay?",
        ),
    ),
    joins=("", "", "Also, "),
    steps=(2, 3, 3, 4, 5),
)

FAMILY = Story(
    things=("books", "dolls", "cards", "points", "pictures", "stamps", "songs", "ribbons"),
    bags=("",),
    opening=(
        part(
            "w=a u=w+b",
            "{X} has {a} {things}. {Y} has {b} more {things} than {X} | "
            "{Y} has {b} more {things} than {X}, who has {a} {things}",
            "{Y} has {e} {things}. | {b} more than {a} is {e}, so {Y} has that many. | "
            "For {Y} it is {e} {things}.",
        ),
        part(
            "w=a u=w-b",
            "{X} has {a} {things}. {Y} has {b} fewer {things} than {X} | "
            "{Y} has {b} fewer {things} than {X}, who has {a} {things}",
            "{Y} has {e} {things}. | {b} fewer than {a} is {e}, so {Y} has that many. | "
            "For {Y} it is {e} {things}.",
        ),
        part(
            "u=b*a w=a",
            "{X} has {a} {things}. {Y} has {b} times as many {things} as {X}",
            "{Y} has {e} {things}. | {b} times as many is {e} {things}. | "
            "For {Y} it is {e} {things}.",
        ),
        part(
            "w=a u=w/2",
            "{X} has {a} {things}. {Y} has half as many {things} as {X}",
            "{Y} has {e} {things}. | Half of that is {e} {things}. | For {Y} it is {e} {things}.",
        ),
    ),
    events=(),
    closing=(
        part(
            "t=w+u",
            "",
            "Together they have {e} {things}. | The sum is {e} {things}. | "
            "In all that is {e} {things}.",
            ask="how many {things} do {X} and {Y} have together? | "
            "how many {things} do both of them have?",
        ),
        part(
            "v=u+c t=v+u",
            "{Z} has {c} more than {Y}",
            "{Z} has {e} {things}. | {c} more is {e} {things}. | For {Z} it is {e} {things}.",
            "Together they have {e} {things}. | The sum is {e} {things}. | "
            "In all that is {e} {things}.",
            ask="how many {things} do {Y} and {Z} have together? | "
            "what is the sum of {things} that {Y} and {Z} have?",
        ),
        part(
            "v=u-c t=v+w",
            "{Z} has {c} fewer than {Y}",
            "{Z} has {e} {things}. | {c} fewer is {e} {things}. | For {Z} it is {e} {things}.",
            "Together they have {e} {things}. | The sum is {e} {things}. | "
            "In all that is {e} {things}.",
            ask="how many {things} do {X} and {Z} have together? | "
            "what is the sum of {things} that {X} and {Z} have?",
        ),
        part(
            "t=u*c",
            "{Z} has {c} times as many as {Y}",
            "{Z} has {e} {things}. | {c} times as many is {e} {things}. | "
            "For {Z} it is {e} {things}.",
            ask="how many {things} does {Z} have? | what is the number of {things} that {Z} has?",
        ),
        part(
            "v=w+u t=v+c",
            "{Z} has {c} {things}",
            "{X} and {Y} have {e} {things}. | The first two have {e} {things}. | "
            "{X} with {Y} makes {e} {things}.",
            "With {Z} that is {e} {things}. | All three have {e} {things}. | "
            "The sum is {e} {things}.",
            ask="how many {things} do the three have together? | "
            "how many {things} do all of them have?",
        ),
        part(
            "v=w+u t=v/c",
            "they share all their {things} equally among {c} people",
            "Together they have {e} {things}. | The sum is {e} {things}. | "
            "In all that is {e} {things}.",
            "Each person gets {e} {things}. | That is {e} {things} for each. | "
            "Sharing gives {e} {things} each.",
            ask="how many {things} does each person get? | how many {things} are there for each "
            "person?",
        ),
        part(
            "v=w+u z=v-c t=z/2",
            "they give away {c} of all their {things} and put the rest equally into 2 bags",
            "Together they have {e} {things}. | The sum is {e} {things}. | "
            "In all that is {e} {things}.",
            "Then {e} {things} are left. | That leaves {e} {things}. | So {e} {things} remain.",
            "Each bag has {e} {things}. | Half of them is {e} {things}. | "
            "Dividing by 2 gives {e} {things}.",
            ask="how many {things} are in each bag? | how many {things} does each bag hold?",
        ),
    ),
    steps=(2, 3, 3, 4),
)

SUMMED = (
    "Together that is {e} {things}. | In all there were {e} {things}. | "
    "Adding gives {e} {things}. | That makes {e} {things}. | So there were {e} {things}."
)
RESTED = (
    "That left {e} {things}. | So {e} {things} were left. | Without those it is {e} {things}. | "
    "Then {e} {things} remained. | Taking away gives {e} {things}."
)
PER = (
    "Each got {e} {things}. | That is {e} {things} in each. | Dividing gives {e} {things}. | "
    "So each held {e} {things}."
)
NEEDED = (
    "That made {e} {bags}. | Dividing gives {e} {bags}. | So it was {e} {bags}. | "
    "{X} needed {e} {bags}."
)
MULTIPLIED = (
    "That is {e} {things}. | Multiplying gives {e} {things}. | So it was {e} {things}. | "
    "There were {e} {things}."
)
BROUGHT = (
    "That is {e} dollars. | So {he} got {e} dollars. | That brought {e} dollars. | "
    "Multiplying gives {e} dollars."
)

# Whole problems of two and three steps; `f=` is a number that the solution does not need.
TALES = fixed(
    part(
        "u=a+b t=u/c",
        "{X} found {a} {things} in the morning and {b} {things} in the evening. {he} packed all "
        "of them into {bags}, {c} in each | "
        "{X} had {a} big {things} and {b} small {things}. One of the {bags} could hold {c} | "
        "{X} and {Y} brought their {things} together. {X} brought {a} and {Y} brought {b}. They "
        "put {c} {things} into each of the {bags}",
        SUMMED,
        NEEDED,
        ask="how many {bags} were needed? | how many {bags} were filled? | "
        "how many {bags} did that make?",
    ),
    part(
        "u=a+b t=u/c",
        "{X} won {a} {things} on Monday and {b} {things} on Friday. {he} divided them among {c} "
        "children, the same number for each | "
        "{X} took {a} {things} at school and {b} {things} at home. {he} laid them on {c} tables, "
        "with the same number on each table",
        SUMMED,
        PER,
        ask="how many {things} were there for each? | how many {things} was that for one of them?",
    ),
    part(
        "u=a+b t=u-c",
        "{X} bought {a} {things} and {Y} bought {b}. On the same day they used {c} of them | "
        "{X} had to finish {a} red {things} and {b} blue {things}. At noon {c} of them were done | "
        "{X} and {Y} put {a} and {b} {things} into one box. {Z} took {c} out",
        SUMMED,
        RESTED,
        ask="how many {things} were left? | how many {things} remained? | "
        "how many {things} was the rest?",
    ),
    part(
        "u=a-b t=u/c",
        "{X} owned {a} {things}, but {b} were broken. {he} divided the others into {c} groups "
        "with the same number in each | "
        "{X} had {a} {things}. {he} hung {b} of them on a wall and put the rest equally into {c} "
        "{bags} | "
        "{X} lost {b} of {his} {a} {things}. What was left was shared equally by {c} friends",
        RESTED,
        PER,
        ask="how many {things} were in each? | how many {things} was that for each?",
    ),
    part(
        "u=a-b t=u/c",
        "{a} {things} were made, but {b} of them were bad. The good ones went into {bags} of {c} | "
        "{X} forgot {b} of the {a} {things}. One of the {bags} could take {c} of the others",
        RESTED,
        NEEDED,
        ask="how many {bags} were needed? | how many {bags} did {he} use?",
    ),
    part(
        "u=a-b t=u*c",
        "{X} had {a} {things}. {he} kept {b} of them and sold the others for {c} dollars each | "
        "{X} cleaned {a} {things} but {b} were still not clean. {he} got {c} dollars for every "
        "clean one | "
        "{X} brought {a} {things} to the market, and {b} were not sold. Every one that was sold "
        "brought {c} dollars",
        RESTED,
        BROUGHT,
        ask="how much money did {X} get? | how many dollars did {he} earn?",
    ),
    part(
        "u=a*b t=u+c",
        "{a} {bags} held {b} {things} each, and {c} {things} lay beside them | "
        "{X} filled {a} {bags} with {b} {things} in each and had {c} single {things}",
        MULTIPLIED,
        SUMMED,
        ask="how many {things} were there in all? | how many {things} was that in total?",
    ),
    part(
        "u=a*b t=u-c",
        "{X} bought {a} {bags} that each held {b} {things}. {c} of the {things} were missing | "
        "{a} {bags} could each hold {b} {things}. {c} places stayed empty",
        MULTIPLIED,
        RESTED,
        ask="how many {things} were really there? | how many {things} was that?",
    ),
    part(
        "u=a+b t=u*c",
        "each of {c} {bags} held {a} red and {b} blue {things} | "
        "one page had {a} old and {b} new {things}. {X} filled {c} pages like this",
        SUMMED,
        MULTIPLIED,
        ask="how many {things} were there in all? | how many {things} did that need?",
    ),
    part(
        "u=a*b t=u/c",
        "{X} emptied {a} {bags} of {b} {things} and shared everything equally among {c} people | "
        "in each of {a} games {X} got {b} {things}. {he} sorted all of them into {c} equal groups",
        MULTIPLIED,
        PER,
        ask="how many {things} did each get? | how many {things} were in one part?",
    ),
    part(
        "u=a+b v=u-c t=v/d",
        "{X} had {a} {things} and got {b} more. {he} gave away {c} and put the others equally "
        "into {d} {bags}",
        SUMMED,
        RESTED,
        PER,
        ask="how many {things} did one of the {bags} hold? | how many {things} were in each?",
    ),
    part(
        "u=a-b v=u-c t=v*d",
        "{X} had {a} {things}. {b} were lost, and {Y} took {c}. {X} sold the rest for {d} "
        "dollars each",
        RESTED,
        RESTED,
        BROUGHT,
        ask="how much money did {X} get? | how many dollars did that bring?",
    ),
    part(
        "u=a+b t=u*c",
        "after {X} sold {b} {things}, {he} had {a} {things} left. Each was worth {c} dollars | "
        "after {b} {things} were gone, {a} {things} were still there. One cost {c} dollars",
        "At first there were {e} {things}. | Before that it was {e} {things}.",
        "All were worth {e} dollars. | That is {e} dollars.",
        ask="how many dollars were all the {things} worth at first?",
    ),
    part(
        "u=a-b t=u*c",
        "{X} had {a} {things}. After {he} sold some, {b} {things} were left. {X} got {c} dollars "
        "for each that {he} sold",
        "{X} sold {e} {things}. | So {e} {things} were sold.",
        BROUGHT,
        ask="how much money did {X} get?",
    ),
    part(
        "u=a-b t=u+c",
        "{X} had {a} {things}. After a walk {he} had {b} {things} left. {Y} lost {c} {things}",
        "{X} lost {e} {things}. | So {e} {things} were lost by {X}.",
        "Both lost {e} {things}. | Together that is {e} {things}.",
        ask="how many {things} did both of them lose?",
    ),
    part(
        "u=a-b t=u-c",
        "{X} has {a} {things} and {Y} has {b}. {X} gives away {c}",
        "{X} has {e} more. | The difference is {e}.",
        "Then the difference is {e}. | Now {X} has {e} more.",
        ask="how many more {things} does {X} have than {Y} then?",
    ),
    part(
        "u=a*b t=u-a",
        "{X} counted {a} {things} and {Y} counted {b} times as many",
        "{Y} counted {e} {things}. | The number of {Y} is {e} {things}.",
        "The difference is {e}. | That is {e} more.",
        ask="how many more {things} did {Y} count than {X}?",
    ),
    part(
        "u=a+b t=u-c f=d",
        "{X} worked {d} hours and made {a} round {things} and {b} square {things}. {Y} took {c} "
        "of the {things} | "
        "{X} got {a} {things} from {Y} and {b} {things} from {Z} in {d} days. {he} used {c}",
        SUMMED,
        RESTED,
        ask="how many {things} were left? | how many {things} did {X} have then?",
    ),
    part(
        "u=a-b t=u+c f=d",
        "{X} had {a} {things} and {d} {bags}. {he} lost {b} {things} and got {c} new {things} | "
        "{a} {things} and {d} lamps were in a room. {X} took {b} {things} out and {Y} brought {c}",
        RESTED,
        SUMMED,
        ask="how many {things} were there in the end? | how many {things} was that then?",
    ),
    part(
        "u=a*b t=u-c f=d",
        "in each of {a} weeks {X} made {b} {things} and {d} drinks. {he} gave {c} {things} to {Y}",
        MULTIPLIED,
        RESTED,
        ask="how many {things} did {X} keep? | how many {things} did {X} still have?",
    ),
    part(
        "u=a*b t=c-u",
        "{X} went to the shop with {c} dollars and paid {b} dollars for each of {a} {things}",
        "They cost {e} dollars. | That was {e} dollars.",
        "That left {e} dollars. | {X} had {e} dollars left.",
        ask="how much money did {X} have after that? | how many dollars were left?",
    ),
    part(
        "u=a*b t=u+c",
        "{X} paid {b} dollars for each of {a} {things} and {c} dollars for a bag",
        "The {things} cost {e} dollars. | That was {e} dollars.",
        "In all {he} paid {e} dollars. | Together that is {e} dollars.",
        ask="how much did {X} pay? | how much money did {he} spend?",
    ),
    part(
        "u=a+b t=c-u",
        "{X} had {c} dollars. {he} paid {a} dollars for {things} and {b} dollars for drinks",
        "{X} paid {e} dollars. | Together that is {e} dollars.",
        "That left {e} dollars. | {X} had {e} dollars left.",
        ask="how many dollars did {X} have left? | how much money was left?",
    ),
    things="stickers cards marbles coins shells stamps beads toys books shirts hats pens games "
    "balls cups lamps cookies muffins cakes pies rolls buns candies apples pears carrots tomatoes "
    "peppers plums flowers eggs pictures plates tickets",
    bags="bags boxes baskets jars packs trays",
    steps=(2, 2, 2, 3),
)
CROWDS = fixed(
    part(
        "u=a+b t=u/c",
        "{a} {things} and {b} teachers took boats. Each boat could carry {c} people | "
        "{a} girls and {b} boys made groups of {c} | "
        "{a} {things} came by bus and {b} by car. They sat down at tables of {c}",
        "That is {e} people. | Together there were {e}. | Adding gives {e} people.",
        "That made {e}. | Dividing gives {e}. | So it was {e}.",
        ask="how many boats, groups or tables was that? | how many did they need?",
    ),
    part(
        "u=a+b t=u-c",
        "{a} {things} waited in the hall. {b} more came in, and then {c} went out | "
        "a bus had {a} {things} on it. At a stop {b} {things} came in and {c} left",
        "Then there were {e} {things}. | Adding gives {e} {things}. | That made {e} {things}.",
        "That left {e} {things}. | Then {e} {things} remained. | So {e} {things} stayed.",
        ask="how many {things} were there then? | how many {things} stayed?",
    ),
    part(
        "u=a-b t=u+c",
        "there were {a} {things} at the camp. {b} of them went home, and {c} others came",
        "That left {e} {things}. | Then {e} {things} remained.",
        "That made {e} {things}. | Then there were {e} {things}.",
        ask="how many {things} were at the camp then?",
    ),
    part(
        "u=a-b t=u/c",
        "{a} {things} wanted to play, but {b} could not come. The others were put into {c} equal "
        "teams | "
        "{a} {things} asked for tickets, but {b} did not get one. The rest sat down in {c} equal "
        "rows",
        "That left {e} {things}. | So {e} {things} were left. | Without those it is {e} {things}.",
        "Each had {e} {things}. | Dividing gives {e} {things}. | That is {e} {things} in each.",
        ask="how many {things} were in each? | how many {things} was that for one of them?",
    ),
    part(
        "u=a*b t=u-c f=d",
        "{a} cars with {b} {things} each came to a fair that was {d} hours long. {c} {things} "
        "went home early",
        "That is {e} {things}. | Multiplying gives {e} {things}.",
        "That left {e} {things}. | So {e} {things} stayed.",
        ask="how many {things} stayed? | how many {things} were left?",
    ),
    part(
        "u=a+b t=u+c",
        "{a} {things} came on Monday, {b} on Tuesday and {c} on Friday",
        "The first two days give {e} {things}. | Monday and Tuesday make {e} {things}.",
        "All days make {e} {things}. | In all that is {e} {things}.",
        ask="how many {things} came in all?",
    ),
    part(
        "u=a-b t=u+c f=d",
        "after {b} of {a} {things} left the park, {c} {things} and {d} dogs came",
        "That left {e} {things}. | Then {e} {things} remained.",
        "That made {e} {things}. | Then there were {e} {things}.",
        ask="how many {things} were in the park then?",
    ),
    things="people children students guests visitors players",
    steps=(2,),
)

GSM = (
    *(COLLECTION, KITCHEN, GARDEN, MONEY, PEOPLE, READING, SHOP, FAMILY),
    *(TALES, TALES, TALES, CROWDS),
)
