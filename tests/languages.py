"""A few simple sentences in many scripts, and small tokenizers of the three usual families trained on text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

AMHARIC = [
    "ልጁ ወደ ቤት ሄደ እና ቀዝቃዛ ውሃ ጠጣ",
    "እናቴ በገበያ ውስጥ ቀይ ፖም እና ዳቦ ገዛች",
    "ትልቁ ውሻ በአረንጓዴ ሣር ላይ በፍጥነት ይሮጣል",
    "ዛሬ ጠዋት ከጓደኛዬ ጋር ወደ ትምህርት ቤት ሄድኩ",
    "ሴትየዋ በወንዙ አጠገብ ጊታር እየተጫወተች ነው",
]
SENTENCES = {
    "Dhivehi": [
        "ކުޑަ ކުއްޖާ ގޭގައި ފެން ބޮނީ އަދި މަސް ކަނީ",
        "މަންމަ ބާޒާރުން ރަތް އާފަލު އަދި ޕާން ގަތީ",
        "މިއަދު ހެނދުނު އަހަރެން ރަހުމަތްތެރިއަކާއެކު ސްކޫލަށް ދިޔައީ",
        "ބޮޑު ބުޅާ ފެހި ވިނައިގެ މަތީގައި އަވަހަށް ދުވަނީ",
        "މި ރަށުގެ މީހުން ކަނޑުގައި މަސް ބާނަން އަވަހަށް ދެއެވެ",
    ],
    "Amharic": AMHARIC,
    "Amharic with U+1361": [f"{sentence}።".replace(" ", "\u1361") for sentence in AMHARIC],
    "Arabic": [
        "الولد الصغير يشرب الماء البارد في البيت مع أخيه",
        "اشترت أمي تفاحا أحمر وخبزا من السوق في الصباح",
        "يجري الكلب الكبير بسرعة على العشب الأخضر خلف الحصان",
        "ذهبت اليوم مع صديقي إلى المدرسة في المدينة القديمة",
        "المرأة تعزف على العود بجانب النهر كل مساء",
    ],
    "Hindi": [
        "छोटा लड़का घर में अपने भाई के साथ ठंडा पानी पीता है",
        "माँ ने सुबह बाज़ार से लाल सेब और रोटी खरीदी",
        "बड़ा कुत्ता हरी घास पर घोड़े के पीछे तेज़ी से दौड़ता है",
        "आज मैं अपने दोस्त के साथ पुराने शहर के विद्यालय गया",
        "औरत हर शाम नदी के किनारे सितार बजाती है",
    ],
    "Thai": [
        "เด็กผู้ชายตัวเล็กดื่มน้ำเย็นอยู่ในบ้าน",
        "แม่ซื้อแอปเปิลสีแดงกับขนมปังที่ตลาดเมื่อเช้านี้",
        "หมาตัวใหญ่วิ่งเร็วบนหญ้าสีเขียวตามหลังม้า",
        "วันนี้ฉันไปโรงเรียนกับเพื่อนที่เมืองเก่า",
        "ผู้หญิงเล่นกีตาร์อยู่ข้างแม่น้ำทุกเย็น",
    ],
    "Khmer": [
        "ក្មេងប្រុសតូចផឹកទឹកត្រជាក់នៅក្នុងផ្ទះ",
        "ម្តាយទិញផ្លែប៉ោមក្រហមនិងនំប៉័ងនៅផ្សារព្រឹកនេះ",
        "ឆ្កែធំរត់លឿនលើស្មៅបៃតងតាមក្រោយសេះ",
        "ថ្ងៃនេះខ្ញុំទៅសាលារៀនជាមួយមិត្តភក្តិ",
        "ស្ត្រីលេងហ្គីតានៅជិតទន្លេរាល់ល្ងាច",
    ],
    "Lao": [
        "ເດັກນ້ອຍກິນເຂົ້າແລະດື່ມນ້ຳເຢັນຢູ່ໃນເຮືອນ",
        "ແມ່ຊື້ໝາກໂປມສີແດງກັບເຂົ້າຈີ່ຢູ່ຕະຫຼາດເຊົ້ານີ້",
        "ໝາໂຕໃຫຍ່ແລ່ນໄວເທິງຫຍ້າສີຂຽວນຳຫຼັງມ້າ",
        "ມື້ນີ້ຂ້ອຍໄປໂຮງຮຽນກັບໝູ່ຢູ່ເມືອງເກົ່າ",
        "ແມ່ຍິງຫຼິ້ນກີຕາຢູ່ແຄມນ້ຳທຸກແລງ",
    ],
    "Burmese": [
        "ကလေးငယ်ကအိမ်ထဲမှာရေအေးသောက်နေတယ်။",
        "အမေကဒီမနက်ဈေးမှာပန်းသီးအနီနဲ့ပေါင်မုန့်ဝယ်တယ်။",
        "ခွေးကြီးကမြင်းနောက်ကိုမြက်ခင်းစိမ်းပေါ်မှာမြန်မြန်ပြေးတယ်။",
        "ဒီနေ့ကျွန်တော်သူငယ်ချင်းနဲ့ကျောင်းသွားတယ်။",
        "အမျိုးသမီးကမြစ်နားမှာညနေတိုင်းဂစ်တာတီးတယ်။",
    ],
    "Chinese": [
        "小男孩和他的弟弟在家里喝冷水。",
        "今天早上妈妈在市场买了红苹果和面包。",
        "大狗跟在马后面在绿色的草地上跑得很快。",
        "今天我和朋友一起去老城的学校。",
        "那个女人每天晚上在河边弹吉他。",
    ],
    "Japanese": [
        "小さな男の子は家で弟と冷たい水を飲んでいます。",
        "今朝、母は市場で赤いりんごとパンを買いました。",
        "大きな犬が馬の後ろから緑の草の上を速く走ります。",
        "今日は友だちと古い町の学校へ行きました。",
        "女の人は毎晩、川のそばでギターをひきます。",
    ],
    "Korean": [
        "어린 소년이 집에서 동생과 함께 차가운 물을 마십니다",
        "오늘 아침 어머니는 시장에서 빨간 사과와 빵을 샀습니다",
        "큰 개가 말 뒤에서 푸른 풀 위를 빨리 달립니다",
        "오늘 나는 친구와 함께 오래된 도시의 학교에 갔습니다",
        "그 여자는 매일 저녁 강가에서 기타를 아주 잘 칩니다",
    ],
    "Tibetan": [
        "བུ་ཆུང་ཆུང་ཁྱིམ་ནང་ལ་ཆུ་གྲང་མོ་འཐུང་གི་འདུག།",
        "ཨ་མས་དེ་རིང་ཞོགས་པ་ཁྲོམ་ནས་ཀུ་ཤུ་དམར་པོ་ཉོས་སོང་།",
        "ཁྱི་ཆེན་པོ་རྟའི་རྗེས་སུ་རྩྭ་སྔོན་པོའི་སྟེང་ལ་རྒྱུག་གི་འདུག།",
        "དེ་རིང་ང་གྲོགས་པོ་མཉམ་དུ་སློབ་གྲྭར་ཕྱིན་པ་ཡིན།",
        "བུད་མེད་དེས་ཆུ་འགྲམ་ལ་སྒྲ་སྙན་གཏོང་གི་འདུག།",
    ],
}
SPECIAL_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
KINDS = ("WordPiece", "Unigram", "bytes")


def trained(kind: str, sentences: Sequence[str], pieces: int) -> PreTrainedTokenizerFast:
    """A tokenizer with about so many pieces: as BERT's, as XLM-RoBERTa's, or as RoBERTa's.

    Where pieces are equally good the library chooses by chance, so that two calls differ a little (not for bytes).
    """
    special = list(SPECIAL_TOKENS.values())
    trainer: Any
    if kind == "WordPiece":
        backend = Tokenizer(models.WordPiece(unk_token=SPECIAL_TOKENS["unk"]))
        backend.normalizer = normalizers.BertNormalizer()
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=pieces, special_tokens=special, show_progress=False)
    elif kind == "Unigram":
        backend = Tokenizer(models.Unigram())
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=pieces, special_tokens=special, unk_token=SPECIAL_TOKENS["unk"], show_progress=False
        )
    else:
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=pieces, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    backend.train_from_iterator(sentences, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, backend.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, **{f"{name}_token": token for name, token in SPECIAL_TOKENS.items()}
    )
