"""Stories of the held-out families `multi`, `asdiv` and `svamp`, and of `single_step`.

The held-out families tell other stories than the others. `single_step` knows some of their phrases
one step at a time, as an instruction-tuned model has met such phrases; putting them together is
left to what is learned from `gsm`. Nothing is trained on a held-out problem or its chain.
"""

from distill.problems.builtin.storytelling import fixed, part

SUM = (
    "That is {e} {things}. | Together there were {e} {things}. | In total there were {e} {things}."
)
REST = "That left {e} {things}. | So {e} {things} were left. | {X} had {e} {things} left."
IN_EACH = "Each got {e} {things}. | That is {e} {things} in each. | Dividing gives {e} {things}."
FILLED = "{X} needed {e} {bags}. | That made {e} {bags}. | Dividing gives {e} {bags}."
PAID = "That is {e} dollars. | {X} got {e} dollars. | In total that was {e} dollars."

FAIR = fixed(
    part(
        "u=a+b t=u/c",
        "at the fair {X} won {a} {things} in the first game and {b} {things} in the second "
        "game. {he} traded every {c} {things} for one toy",
        SUM,
        "{X} got {e} toys. | That was {e} toys. | Dividing gives {e} toys.",
        ask="how many toys could {he} get?",
    ),
    part(
        "u=a-b t=u*c",
        "{X} made {a} {things} for the fair, but only {b} of them were not sold. Every one "
        "that was sold brought {c} dollars",
        REST,
        PAID,
        ask="how much money did {X} earn at the fair?",
    ),
    part(
        "u=a-b t=u/c",
        "{X} had {a} {things} for the fair but lost {b} on the way. {he} placed what was left "
        "on {c} tables, with the same number on each table",
        REST,
        IN_EACH,
        ask="how many {things} were on each table?",
    ),
    part(
        "u=a+b t=u-c",
        "{X} and {Y} put their {things} together at the fair. {X} had {a} and {Y} had {b}. On "
        "the first night they used {c} of them",
        SUM,
        REST,
        ask="how many {things} did they still have?",
    ),
    things="tickets candies cards balls toys stickers",
    steps=(2,),
)
TRIP = fixed(
    part(
        "u=a+b t=u/c",
        "for the school trip {a} students and {b} teachers wanted to ride in cars. Only {c} "
        "people could sit in each car",
        "That is {e} people. | In total there were {e} people.",
        "They needed {e} cars. | Dividing gives {e} cars.",
        ask="how many cars did they need?",
    ),
    part(
        "u=a*b t=u+c",
        "{a} cars with {b} {things} in each and a bus with {c} {things} went to the museum",
        "The cars had {e} {things}. | In the cars were {e} {things}.",
        SUM,
        ask="how many {things} went to the museum?",
    ),
    part(
        "u=a*b t=u-c",
        "a school rented {a} cars that could each hold {b} {things}. On the day of the trip "
        "{c} of the seats stayed empty",
        "The cars had {e} seats. | There were {e} seats.",
        "So {e} {things} went. | Without those it was {e} {things}.",
        ask="how many {things} went on the trip?",
    ),
    part(
        "u=a-b t=u/c",
        "{a} {things} wanted to play on a team, but {b} of them were not picked. The others "
        "were put into {c} groups of the same size",
        REST,
        IN_EACH,
        ask="how many {things} were in each group?",
    ),
    things="students children players visitors",
    steps=(2,),
)
ALBUM = fixed(
    part(
        "u=a+b v=u-c t=v/d",
        "{X} took {a} {things} at home and {b} {things} in the park. {he} lost {c} of them and "
        "sorted the others into {d} books with the same number in each",
        SUM,
        REST,
        IN_EACH,
        ask="how many {things} were in one book?",
    ),
    part(
        "u=a-b t=u/c",
        "{X} took {a} {things}. {he} put {b} of them on a wall and the rest into {c} books, "
        "the same number into each",
        REST,
        IN_EACH,
        ask="how many {things} did each book hold?",
    ),
    part(
        "u=a+b t=u/c",
        "{X} had {a} {things} of dogs and {b} {things} of birds. One page of {his} book could "
        "hold {c}",
        SUM,
        "{X} used {e} pages. | That made {e} pages.",
        ask="how many pages did {he} use?",
    ),
    part(
        "u=a+b t=u*c",
        "every page of a book had {a} big and {b} small {things}. {X} filled {c} pages of it",
        "One page had {e} {things}. | There were {e} {things} on a page.",
        SUM,
        ask="how many {things} did {X} put in?",
    ),
    things="pictures stamps cards stickers",
    steps=(2, 2, 3),
)
HOUSEWORK = fixed(
    part(
        "u=a+b t=u/c",
        "{X} had to wash {a} red {things} and {b} blue {things}. The machine could take {c} at "
        "once",
        SUM,
        "{X} washed {e} times. | That made {e} times.",
        ask="how many times did {he} use the machine?",
    ),
    part(
        "u=a+b t=u-c",
        "{X} had to wash {a} small {things} and {b} big {things} before school. When school "
        "started, {c} of them were clean",
        SUM,
        REST,
        ask="how many {things} were not clean yet?",
    ),
    part(
        "u=a-b v=u-c t=v*d",
        "{X} had {a} {things} to clean. {he} forgot {b} of them, and {Y} cleaned {c} of the "
        "others. {X} got {d} dollars for each one that {he} cleaned",
        REST,
        REST,
        PAID,
        ask="how much money did {X} earn?",
    ),
    part(
        "u=a-b t=u*c",
        "{X} got {c} dollars for each of the {things} that {he} cleaned. There were {a} of "
        "them, but {he} forgot {b}",
        "So {he} cleaned {e} {things}. | That left {e} {things}.",
        PAID,
        ask="how many dollars did {he} earn?",
    ),
    things="shirts plates cups lamps hats",
    steps=(2, 2, 3),
)
MULTI = (FAIR, TRIP, ALBUM, HOUSEWORK)

COMPARE = fixed(
    part(
        "t=a-b",
        "{X} has {a} {things} and {Y} has {b} {things}",
        "The difference is {e}. | {a} is more by {e}.",
        ask="how many {things} must {Y} get to have as many as {X}? | "
        "how many {things} must {X} give away to have as many as {Y}?",
    ),
    part(
        "t=a+b",
        "{X} has {a} fewer {things} than {Y}. {X} has {b} {things}",
        "{Y} has {e} {things}.",
        ask="how many {things} does {Y} have?",
    ),
    part(
        "t=a-b",
        "{X} has {b} more {things} than {Y}. {X} has {a} {things}",
        "{Y} has {e} {things}.",
        ask="how many {things} does {Y} have?",
    ),
    part(
        "t=a*b",
        "{X} saw {a} {things} and {Y} saw {b} times as many",
        "{Y} saw {e} {things}.",
        ask="how many {things} did {Y} see?",
    ),
    part(
        "t=a/b",
        "{X} counted {a} {things}. That was {b} times the number that {Y} counted",
        "{Y} counted {e} {things}.",
        ask="how many {things} did {Y} count?",
    ),
    part(
        "u=a-b t=u+a",
        "{X} ate {a} {things}. {Y} ate {b} fewer {things} than {X}",
        "{Y} ate {e} {things}.",
        "Together they ate {e} {things}.",
        ask="how many {things} did {X} and {Y} eat together?",
    ),
    part(
        "u=a*b t=u-a",
        "{X} saw {a} {things} and {Y} saw {b} times as many",
        "{Y} saw {e} {things}.",
        "The difference is {e}.",
        ask="how many more {things} did {Y} see than {X}?",
    ),
    part(
        "u=a+b t=u+c",
        "{X} has {b} more {things} than {Y}, and {Y} has {a}. {Z} gives {c} {things} to {X}",
        "{X} has {e} {things}.",
        "Then {X} has {e} {things}.",
        ask="how many {things} does {X} have then?",
    ),
    things="apples plums eggs shells birds flowers marbles rolls",
    steps=(1, 2, 2, 2),
)
SHARING = fixed(
    part(
        "t=a/b",
        "{a} {things} are shared equally by {b} children | "
        "{X} wants to share {a} {things} equally with {b} children in all",
        "Each gets {e} {things}.",
        ask="how many {things} will each child get?",
    ),
    part(
        "t=a*b",
        "{a} {bags} are on the table. Each of them holds {b} {things}",
        "There are {e} {things}.",
        ask="how many {things} are on the table?",
    ),
    part(
        "t=a/b",
        "a farmer has {a} {things} to put in {bags}. Each of the {bags} can hold {b}",
        "The farmer needs {e} {bags}.",
        ask="how many {bags} are needed for all the {things}?",
    ),
    part(
        "t=a/b",
        "{X} put {a} {things} in {b} equal groups",
        "Each group has {e} {things}.",
        ask="how many {things} are in one group?",
    ),
    part(
        "u=a*b t=u/c",
        "{X} has {a} {bags} of {b} {things}. {c} people will share all of them equally",
        "There are {e} {things}.",
        "Each gets {e} {things}.",
        ask="how many {things} will each person get?",
    ),
    part(
        "u=a-b t=u/c",
        "a farmer had {a} {things}. {b} were bad, and the good ones were shared equally by {c} "
        "children",
        "There were {e} good {things}.",
        "Each got {e} {things}.",
        ask="how many {things} did each child get?",
    ),
    part(
        "u=a*b t=u+c",
        "{a} {bags} of {b} {things} and {c} single {things} are on the table",
        "The {bags} hold {e} {things}.",
        "There are {e} {things}.",
        ask="how many {things} are on the table?",
    ),
    things="carrots peppers candies pears cookies balls tomatoes eggs",
    bags="boxes baskets jars plates",
    steps=(1, 2, 2, 2),
)
CHANGING = fixed(
    part(
        "t=a-b",
        "{a} {things} were in the park. {b} of them went home",
        "That left {e} {things}.",
        ask="how many {things} stayed in the park?",
    ),
    part(
        "t=a+b",
        "there were {a} {things} in the hall, and then {b} {things} came in",
        "That makes {e} {things}.",
        ask="how many {things} were in the hall then?",
    ),
    part(
        "t=a-b",
        "after {b} {things} came in, there were {a} {things} in the hall",
        "Before there were {e} {things}.",
        ask="how many {things} were there before?",
    ),
    part(
        "t=a+b",
        "after {b} {things} had gone home, {a} {things} were still in the park",
        "At first there were {e} {things}.",
        ask="how many {things} were in the park at first?",
    ),
    part(
        "u=a+b t=u+c",
        "{a} {things} came by bus, {b} by car and {c} on foot",
        "Bus and car brought {e} {things}.",
        "All together there are {e} {things}.",
        ask="how many {things} came in all?",
    ),
    part(
        "u=a-b t=u+c",
        "{a} {things} were in the park. {b} of them went home, and {c} others came",
        "That left {e} {things}.",
        "That makes {e} {things}.",
        ask="how many {things} were in the park then?",
    ),
    things="children visitors students players guests people",
    steps=(1, 2, 2, 2),
)
PRICES = fixed(
    part(
        "t=a*b",
        "one of the {things} costs {a} dollars",
        "They cost {e} dollars.",
        ask="how much do {b} {things} cost?",
    ),
    part(
        "t=a/b",
        "{X} paid {a} dollars for {b} {things}",
        "One costs {e} dollars.",
        ask="what did each of the {things} cost?",
    ),
    part(
        "t=a-b",
        "{X} wants a lamp for {a} dollars and has {b} dollars",
        "{X} needs {e} dollars.",
        ask="how many dollars does {X} have to save?",
    ),
    part(
        "t=a+b",
        "{X} spent {a} dollars on {things} and {b} dollars on food",
        "{X} spent {e} dollars.",
        ask="how much did {he} spend?",
    ),
    part(
        "u=a*b t=c-u",
        "{X} had {c} dollars and bought {a} {things} that cost {b} dollars each",
        "They cost {e} dollars.",
        "{X} had {e} dollars left.",
        ask="how much money did {X} have after that?",
    ),
    part(
        "u=a*b t=u+c",
        "{X} bought {a} {things} for {b} dollars each and a lamp for {c} dollars",
        "The {things} cost {e} dollars.",
        "{X} spent {e} dollars.",
        ask="how much did {X} spend?",
    ),
    part(
        "u=a+b t=c-u",
        "{X} had {c} dollars and spent {a} dollars on {things} and {b} dollars on food",
        "{X} spent {e} dollars.",
        "{X} had {e} dollars left.",
        ask="how much money did {X} have left?",
    ),
    things="tickets books pens games shirts hats cups dolls",
    steps=(1, 2, 2, 2),
)
ASDIV = (COMPARE, SHARING, CHANGING, PRICES)

LIBRARY = fixed(
    part(
        "t=a-b f=c",
        "{X} had {a} {things} and {c} {bags} on {his} desk. {he} gave {b} {things} to {Y}",
        REST,
        ask="how many {things} did {X} have then? | how many {things} stayed on the desk?",
    ),
    part(
        "t=a-b f=c",
        "{X} had {a} {things} and {c} {bags}. After {he} gave some {things} to {Y}, {he} had "
        "{b} {things} left",
        "{X} gave {e} {things}.",
        ask="how many {things} did {he} give to {Y}?",
    ),
    part(
        "t=a-b f=c",
        "{X} has {a} {things}, {b} {bags} and {c} boxes",
        "The difference is {e}.",
        ask="how many more {things} than {bags} does {X} have?",
    ),
    part(
        "t=a+b f=c",
        "{X} bought {a} {things} for {c} dollars each and already had {b} {things} at home",
        SUM,
        ask="how many {things} did {X} have then?",
    ),
    part(
        "t=a+b f=c",
        "after {X} sold {b} {things} and {c} {bags}, {he} had {a} {things} left",
        "{X} had {e} {things} at first.",
        ask="how many {things} did {X} have at first?",
    ),
    part(
        "u=a-b t=u+c f=d",
        "{X} had {a} {things} and {d} {bags}. {he} gave {b} {things} to {Y} and got {c} {things} "
        "from {Z}",
        REST,
        SUM,
        ask="how many {things} did {X} have in the end?",
    ),
    part(
        "u=a+b t=u-c f=d",
        "{X} had {a} old {things}, {b} new {things} and {d} {bags}. {he} sold {c} of the {things}",
        SUM,
        REST,
        ask="how many {things} did {X} keep?",
    ),
    things="books pens cards stamps stickers",
    bags="games toys dolls coins",
    steps=(1, 2, 2, 2),
)
BAKERY = fixed(
    part(
        "t=a-b f=c",
        "{X} made {a} {things}. {he} sold {b} {things} and {c} drinks",
        REST,
        ask="how many {things} did {he} still have?",
    ),
    part(
        "t=a*b f=c",
        "{X} made {a} {bags} of {b} {things} on a day with {c} guests",
        SUM,
        ask="how many {things} did {X} make?",
    ),
    part(
        "u=a+b t=u-c f=d",
        "{X} made {a} sweet {things} and {b} plain {things} in {d} hours. {Y} ate {c} of the "
        "{things}",
        SUM,
        REST,
        ask="how many {things} were left?",
    ),
    part(
        "u=a-b v=c-d t=u",
        "{X} had {a} sweet {things} and {c} plain {things}. {he} ate {b} sweet {things} and "
        "{d} plain ones",
        "There were {e} sweet {things}.",
        "There were {e} plain {things}.",
        ask="how many sweet {things} did {X} have left?",
    ),
    part(
        "t=a/b f=c",
        "{X} put {a} {things} equally into {b} {bags} and sold each of the {bags} for {c} dollars",
        IN_EACH,
        ask="how many {things} were in each of the {bags}?",
    ),
    things="cookies cakes muffins pies rolls buns",
    bags="boxes trays plates",
    steps=(1, 2, 2, 2),
)
BUS = fixed(
    part(
        "t=a-b f=c",
        "{a} {things} were riding on a bus for {c} hours. At one stop some {things} left, and "
        "{b} {things} stayed on the bus",
        "So {e} {things} left.",
        ask="how many {things} left the bus?",
    ),
    part(
        "t=a-b f=c",
        "some {things} were on a bus. At a stop {b} {things} and {c} dogs came in, and then "
        "there were {a} {things} on the bus",
        "At first there were {e} {things}.",
        ask="how many {things} were on the bus at first?",
    ),
    part(
        "u=a+b t=u-c f=d",
        "{a} {things} were on bus number {d}. At a stop {b} {things} came in and {c} went out",
        "Then there were {e} {things}.",
        "That left {e} {things}.",
        ask="how many {things} were on the bus then?",
    ),
    part(
        "t=a+b f=c",
        "there were {a} {things} and {c} dogs on a bus. {b} more {things} came in at the park",
        "Then there were {e} {things}.",
        ask="how many {things} were on the bus then?",
    ),
    things="children people students players visitors",
    steps=(1, 2, 2, 2),
)
SPORT = fixed(
    part(
        "t=a-b f=c",
        "{X} ran {a} times around the park on Monday and {b} times on Tuesday. {Y} ran {c} times",
        "The difference is {e}.",
        ask="how many more times did {X} run on Monday than on Tuesday?",
    ),
    part(
        "t=a+b f=c",
        "{X} got {a} points in the first game, {b} points in the second game and {Y} got {c} "
        "points",
        "{X} got {e} points.",
        ask="how many points did {X} get in both games?",
    ),
    part(
        "t=a*b f=c",
        "in each of {a} games {X} got {b} points and {Y} got {c} points",
        "{X} got {e} points.",
        ask="how many points did {X} get?",
    ),
    part(
        "u=a+b t=u/c f=d",
        "{a} girls and {b} boys formed teams of {c} and played for {d} hours",
        "There were {e} children.",
        "They made {e} teams.",
        ask="how many teams were there?",
    ),
    part(
        "u=a+b t=u-c f=d",
        "{X} ran {a} times around the park on Monday and {b} times on Tuesday. {Y} ran {c} times "
        "in {d} days",
        "{X} ran {e} times.",
        "The difference is {e}.",
        ask="how many more times did {X} run than {Y}?",
    ),
    things="points",
    steps=(1, 2, 2, 2),
)
SVAMP = (LIBRARY, BAKERY, BUS, SPORT)

ALL_THINGS = (
    "apples pears plums carrots tomatoes peppers flowers eggs cookies muffins cakes pies rolls "
    "buns candies sandwiches "
    "stickers cards marbles coins shells stamps beads toys books shirts hats pens games balls "
    "cups lamps dolls pictures "
    "ribbons plates tickets birds"
)
ALL_PEOPLE = "people children students guests visitors players girls boys"
ONE = "That is {e} {things}. | So it is {e} {things}. | This gives {e} {things}."
ONE_DOLLARS = "That is {e} dollars. | So it is {e} dollars. | This gives {e} dollars."

ONE_THING = fixed(
    part(
        "t=a+b",
        "{X} has {a} {things} and gets {b} more | {X} had {a} {things} and found {b} more | "
        "{X} picked {a} {things} and {Y} picked {b} | "
        "{X} owns {a} red {things} and {b} blue ones | {X} keeps {a} old {things} and {b} new "
        "{things}",
        ONE,
        ask="how many {things} is that? | how many {things} are there in all? | "
        "how many {things} is that together?",
    ),
    part(
        "t=a-b",
        "{X} has {a} {things} and gives away {b} | {X} had {a} {things} and lost {b} | "
        "{X} made {a} {things} and sold {b} | "
        "there were {a} {things} and {Y} ate {b} of them | "
        "{X} has {a} {things}, but {b} are bad | {X} took {a} {things} and used {b}",
        ONE,
        ask="how many {things} are left? | how many {things} remain? | "
        "how many {things} are there after that?",
    ),
    part(
        "t=a*b",
        "{X} buys {a} {bags} with {b} {things} in each | "
        "there are {a} {bags} and each holds {b} {things} | "
        "{X} filled {a} {bags} with {b} {things} each",
        ONE,
        ask="how many {things} is that? | how many {things} are there in total?",
    ),
    part(
        "t=a/b",
        "{X} puts {a} {things} equally into {b} {bags} | "
        "{a} {things} were sorted into {b} equal {bags} | "
        "{b} {bags} hold {a} {things}, the same number each",
        ONE,
        ask="how many {things} are in each? | how many {things} does each of the {bags} hold?",
    ),
    part(
        "t=a/b",
        "{X} packs {a} {things} into {bags} of {b} | {X} placed {a} {things} in {bags}, {b} in "
        "each",
        "That is {e} {bags}. | So it is {e} {bags}.",
        ask="how many {bags} are used? | how many {bags} does {he} need?",
    ),
    part(
        "t=a+b",
        "{Y} has {b} more {things} than {X}, and {X} has {a}",
        ONE,
        ask="how many {things} does {Y} have?",
    ),
    part(
        "t=a-b",
        "{Y} has {b} fewer {things} than {X}, and {X} has {a}",
        ONE,
        ask="how many {things} does {Y} have?",
    ),
    part(
        "t=a*b",
        "{Y} has {b} times as many {things} as {X}, and {X} has {a}",
        ONE,
        ask="how many {things} does {Y} have?",
    ),
    part(
        "t=a/2",
        "{X} counted {a} {things} and {Y} half as many",
        ONE,
        ask="how many {things} did {Y} count?",
    ),
    part(
        "t=a-b",
        "{X} needs {a} {things} and has {b}",
        ONE,
        ask="how many {things} are missing? | how many more {things} does {he} need?",
    ),
    things=ALL_THINGS,
    bags="bags boxes baskets jars packs trays plates crates rows groups",
    steps=(1,),
)
ONE_CROWD = fixed(
    part(
        "t=a+b",
        "{a} {things} are in the park and {b} more come | "
        "{a} {things} were on the bus and {b} joined them | "
        "{a} {things} and {b} teachers went to the museum",
        "That is {e}. | So it is {e} in all.",
        ask="how many are there now? | how many is that in total?",
    ),
    part(
        "t=a-b",
        "{a} {things} are at school and {b} go home | {a} {things} were in the hall and {b} "
        "left | {a} {things} came to the camp and {b} did not stay",
        ONE,
        ask="how many {things} stay? | how many {things} remain?",
    ),
    part(
        "t=a/b",
        "{a} {things} form teams of {b} | {a} {things} ride in cars, {b} in each | "
        "{a} {things} sit at tables of {b}",
        "That is {e} groups. | So it is {e} groups.",
        ask="how many groups is that?",
    ),
    part(
        "t=a*b",
        "{a} cars with {b} {things} each came to the fair | "
        "at the party {a} tables had {b} {things} each | "
        "{a} groups of {b} {things} played a game",
        ONE,
        ask="how many {things} is that? | how many {things} were there?",
    ),
    part(
        "t=a/b",
        "{b} {things} share {a} dollars equally",
        ONE_DOLLARS,
        ask="how many dollars does each one get?",
    ),
    things=ALL_PEOPLE,
    steps=(1,),
)
ONE_PRICE = fixed(
    part(
        "t=a*b",
        "{X} buys {a} {things} for {b} dollars each | {X} sold {a} {things} for {b} dollars "
        "each | {X} works {a} hours for {b} dollars an hour | "
        "{X} saved {b} dollars a week for {a} weeks",
        ONE_DOLLARS,
        ask="how many dollars is that? | how much money is that?",
    ),
    part(
        "t=a-b",
        "{X} has {a} dollars and spends {b} dollars on {things} | "
        "{X} had {a} dollars and paid {b} dollars for {things}",
        ONE_DOLLARS,
        ask="how many dollars are left? | how much money does {he} have left?",
    ),
    part(
        "t=a+b",
        "{X} earns {a} dollars on Monday and {b} dollars on Friday | "
        "{X} spent {a} dollars on {things} and {b} dollars on food",
        ONE_DOLLARS,
        ask="how many dollars is that in all? | how much money is that?",
    ),
    part(
        "t=a/b",
        "{X} paid {a} dollars for {b} {things} | {b} {things} cost {a} dollars",
        ONE_DOLLARS,
        ask="how many dollars does each of the {things} cost? | what does each cost?",
    ),
    part(
        "t=a-b",
        "{X} wants to buy {things} for {a} dollars and has saved {b} dollars",
        ONE_DOLLARS,
        ask="how many dollars are missing? | how much more money does {X} need?",
    ),
    things=ALL_THINGS,
    steps=(1,),
)
ONE_PHRASE = fixed(
    part(
        "t=a+b",
        "{X} won {a} {things} in the first game and {b} {things} in the second game | "
        "{X} took {a} {things} at home and {b} {things} in the park | "
        "{X} had {a} {things} at home and bought {b} {things} | "
        "{X} and {Y} put their {things} together. {X} had {a} and {Y} had {b} | "
        "{X} washed {a} small {things} and {b} big {things} | "
        "every page of a book had {a} big and {b} small {things}",
        ONE,
        ask="how many {things} is that in all? | how many {things} were there together?",
    ),
    part(
        "t=a+b",
        "after {X} sold {b} {things}, {he} had {a} {things} left | "
        "after {X} gave {b} {things} to {Y}, {a} {things} were still there | "
        "{X} lost {b} {things} on the way and still had {a} {things}",
        ONE,
        ask="how many {things} did {X} have at first? | how many {things} were there before?",
    ),
    part(
        "t=a-b",
        "{X} had {a} {things}, but only {b} of them were not sold | "
        "{X} had to clean {a} {things} and forgot {b} of them | "
        "{X} took {a} {things} and put {b} of them on a wall | "
        "{X} had {a} {things} for the fair but lost {b} on the way",
        ONE,
        ask="how many were the others? | how many {things} is the rest?",
    ),
    part(
        "t=a-b",
        "{X} had {a} {things}. After {he} gave some {things} to {Y}, {he} had {b} {things} left | "
        "{X} had {a} {things}. {he} sold some, and {b} {things} stayed on the desk",
        ONE,
        ask="how many {things} went away? | how many {things} did {X} lose?",
    ),
    part(
        "t=a-b",
        "{X} has {a} {things} and {Y} has {b} {things} | "
        "{X} counted {a} {things} and {Y} counted {b} {things}",
        "The difference is {e}. | So it is {e} more. | That is {e}.",
        ask="how many more {things} does {X} have than {Y}? | what is the difference? | "
        "how many fewer {things} are those of {Y}?",
    ),
    part(
        "t=a*b",
        "one page holds {a} {things} and {X} filled {b} pages | "
        "in each of {b} games {X} got {a} {things} | "
        "{X} put {a} {things} into each of {b} {bags} | "
        "{b} {bags} could each hold {a} {things}",
        ONE,
        ask="how many {things} is that? | how many {things} did {X} have there?",
    ),
    part(
        "t=a/b",
        "{X} traded every {b} {things} for one toy and had {a} {things} | "
        "the machine can take {b} {things} at once and {X} has {a} {things} to wash | "
        "one page of a book can hold {b} {things} and {X} has {a} {things}",
        "That is {e}. | So it is {e}. | Dividing gives {e}.",
        ask="how many toys, times or pages is that? | how many does {he} need?",
    ),
    part(
        "t=a/b",
        "{X} placed {a} {things} on {b} tables, with the same number on each table | "
        "{X} sorted {a} {things} into {b} books with the same number in each | "
        "{a} {things} are shared equally by {b} children",
        ONE,
        ask="how many {things} were in one of them? | how many {things} did each of them hold?",
    ),
    part(
        "t=a-b f=c",
        "{X} had {a} {things} and {c} {bags} and gave {b} {things} to {Y} | "
        "{X} made {a} {things}, and then {he} sold {b} {things} and {c} drinks",
        ONE,
        ask="how many {things} did {X} still have? | how many {things} were left?",
    ),
    part(
        "t=a+b f=c",
        "{X} had {a} {things} and {c} {bags} and bought {b} more {things} | "
        "{X} got {a} {things} on Monday and {b} {things} on Tuesday, and {Y} got {c} {things}",
        ONE,
        ask="how many {things} did {X} have then? | how many {things} did {X} get?",
    ),
    things=ALL_THINGS,
    bags="bags boxes baskets jars trays plates",
    steps=(1,),
)
ONE_RIDE = fixed(
    part(
        "t=a+b",
        "{a} {things} came by bus and {b} by car | {a} {things} and {b} teachers rode in cars | "
        "there were {a} {things} on a bus, and {b} more came in at a stop | "
        "after {b} {things} had gone home, {a} {things} were still in the park",
        "That is {e}. | So it is {e} in all. | This gives {e}.",
        ask="how many were there in all? | how many is that together?",
    ),
    part(
        "t=a-b",
        "{a} {things} wanted to play on a team, but {b} of them were not picked | "
        "a bus could hold {a} {things}, but {b} seats stayed empty | "
        "{a} {things} were riding on a bus, and at a stop {b} went out | "
        "after {b} {things} came in, there were {a} {things} in the hall",
        ONE,
        ask="how many {things} is the rest? | how many were the others?",
    ),
    part(
        "t=a-b f=c",
        "{a} {things} were riding on a bus for {c} hours. At a stop {b} of them left | "
        "{a} {things} and {c} dogs were in the park, and {b} {things} went home",
        ONE,
        ask="how many {things} stayed? | how many {things} were left?",
    ),
    part(
        "t=a/b",
        "{a} {things} wanted to ride in cars. Only {b} people could sit in each car | "
        "{a} {things} formed teams of {b}",
        "That is {e}. | So it is {e}. | Dividing gives {e}.",
        ask="how many did they need? | how many were there?",
    ),
    part(
        "t=a/b",
        "{a} {things} were put into {b} groups of the same size",
        ONE,
        ask="how many {things} were in each group?",
    ),
    things=ALL_PEOPLE,
    steps=(1,),
)
_FACT = "{e}. | So {e}. | It is {e}."
FACTS = fixed(
    part(
        "t=a+b",
        "",
        _FACT,
        ask="what is {a} + {b}? | what is {a} plus {b}? | how much is {a} + {b}? | "
        "what is the sum of {a} and {b}?",
    ),
    part(
        "t=a-b",
        "",
        _FACT,
        ask="what is {a} - {b}? | what is {a} minus {b}? | how much is {a} - {b}? | "
        "what is {b} less than {a}?",
    ),
    part(
        "t=a*b",
        "",
        _FACT,
        ask="what is {a} * {b}? | what is {a} times {b}? | how much is {a} * {b}?",
    ),
    part(
        "t=a/b",
        "",
        _FACT,
        ask="what is {a} / {b}? | how much is {a} / {b}? | what is {a} divided by {b}?",
    ),
    part("t=a/2", "", _FACT, ask="what is half of {a}?"),
    things="numbers",
    steps=(1,),
)
SINGLE = (ONE_THING, ONE_PHRASE, ONE_PHRASE, ONE_CROWD, ONE_RIDE, ONE_PRICE, FACTS)
