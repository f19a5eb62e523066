"""What the embedded world is made of: 54 nameable objects, 36 props that no text names, 9 topics.

Objects of a topic appear together, so their co-occurrence can be counted and asked about as POPE does. A prop
belongs to a topic; the biased annotator of `embedded_training.annotator` assumes that topic's objects when it sees one.
"""

import numpy as np

OBJECTS: dict[str, str] = {
    "person": "🧍", "car": "🚗", "bus": "🚌", "truck": "🚚", "bicycle": "🚲", "motorcycle": "🏍", "train": "🚆",
    "airplane": "✈", "boat": "⛵", "kite": "🪁", "umbrella": "☂", "surfboard": "🏄", "frisbee": "🥏",
    "backpack": "🎒", "suitcase": "🧳", "handbag": "👜", "knife": "🔪", "spoon": "🥄", "bowl": "🥣", "cup": "☕",
    "bottle": "🍾", "wineglass": "🍷", "apple": "🍎", "banana": "🍌", "orange": "🍊", "broccoli": "🥦",
    "carrot": "🥕", "pizza": "🍕", "cake": "🍰", "donut": "🍩", "sandwich": "🥪", "hotdog": "🌭", "horse": "🐎",
    "cow": "🐄", "sheep": "🐑", "bird": "🐦", "elephant": "🐘", "zebra": "🦓", "dog": "🐕", "cat": "🐈",
    "couch": "🛋", "tv": "📺", "clock": "🕰", "vase": "🏺", "plant": "🪴", "book": "📖", "laptop": "💻",
    "phone": "📱", "keyboard": "⌨", "scissors": "✂", "ball": "⚽", "bat": "🏏", "racket": "🎾", "skateboard": "🛹",
}  # fmt: skip
CLASSES = tuple(OBJECTS)

# A topic's objects, the most frequent first.
TOPICS: dict[str, tuple[str, ...]] = {
    "street": ("car", "person", "bus", "bicycle", "truck", "motorcycle", "backpack", "dog"),
    "beach": ("person", "surfboard", "umbrella", "kite", "boat", "frisbee", "bird", "backpack"),
    "kitchen": ("knife", "bowl", "spoon", "apple", "carrot", "banana", "broccoli", "bottle", "orange"),
    "dining": ("cup", "cake", "pizza", "wineglass", "bottle", "donut", "sandwich", "hotdog"),
    "farm": ("horse", "cow", "sheep", "bird", "dog", "elephant", "zebra", "truck"),
    "living": ("couch", "tv", "cat", "plant", "clock", "vase", "book", "dog"),
    "office": ("laptop", "keyboard", "phone", "book", "cup", "scissors", "clock", "plant"),
    "sport": ("person", "ball", "racket", "bat", "skateboard", "frisbee", "bicycle", "bottle"),
    "travel": ("suitcase", "train", "airplane", "person", "handbag", "bus", "backpack", "phone"),
}
TOPIC_NAMES = tuple(TOPICS)

PROPS: dict[str, str] = {
    "street": "🚧🏢⛽🚥", "beach": "🌴🐚🦀🌊", "kitchen": "🍳🧂🧽🧄", "dining": "🕯🎈🌹🧃", "farm": "🌾🚜🌳🏡",
    "living": "🧶🎁🎻🪞", "office": "📎📌📁📈", "sport": "🏆🥅🎽🏁", "travel": "🗺🎫🗽🏨",
}  # fmt: skip
PROP_LIST = tuple((topic, glyph) for topic, glyphs in PROPS.items() for glyph in glyphs)

# Mean colour of a topic's background, RGB 0-255.
GROUND: dict[str, tuple[int, int, int]] = {
    "street": (128, 128, 134), "beach": (226, 202, 150), "kitchen": (214, 214, 206), "dining": (150, 104, 72),
    "farm": (128, 170, 96), "living": (190, 160, 150), "office": (176, 190, 204), "sport": (104, 158, 110),
    "travel": (150, 180, 210),
}  # fmt: skip

N_OBJECTS, N_PROPS = len(CLASSES), len(PROP_LIST)


# (topics, objects) bool: the object belongs to the topic; (props, objects) bool: to the prop's
TOPIC_OBJECTS = np.array([[name in names for name in CLASSES] for names in TOPICS.values()])
PROP_OBJECTS = np.stack([TOPIC_OBJECTS[TOPIC_NAMES.index(topic)] for topic, _ in PROP_LIST])
