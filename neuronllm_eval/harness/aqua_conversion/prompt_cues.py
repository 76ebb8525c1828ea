"""Words around a question: cues for the answer, headings of the options. Pure text.

Only known words are removed, in the languages of the harness's tasks: any other text, such as
`Plausible:` or `Antonym:`, may be the question itself.
"""

from __future__ import annotations

import re

# Cues for the answer, in the languages of the harness's tasks. Without regard to case.
_ANSWER_WORDS = (
    "answer|correct answer|the answer is|the correct answer is|response|label|assistant"
    "|respuesta|respuesta correcta|resposta|réponse|erantzuna|risposta|la risposta corretta è"
    "|antwort|svar|riktig svar|rett svar|cevap|ответ|правильный ответ|απάντηση"
    "|الجواب|جواب|الإجابة|إجابة|الاجابة|ج|جاۋاپ|پاسخ|जवाब|उत्तर|উত্তর|jawaban|jawapan"
    "|câu trả lời|đáp án|odpowiedź|odpověď|vastaus|antwoord"
    "|答案|答|正确答案|回答|応答|정답|답변|답"
)
_QUESTION_WORDS = (
    "question|q|galdera|pregunta|pergunta|domanda|frage|soru|вопрос|ερώτηση|spørsmål|vraag"
    "|سؤال|السؤال|سۇئال|प्रश्न|প্রশ্ন|pertanyaan|câu hỏi|问题|問題|질문|문제"
)
_HEADING_WORDS = (
    "options|choices|answer choices|answer options|possible answers|candidates|alternatives"
    "|opciones|opcions|opcions de resposta|opções|opzioni|aukerak|alternativer|alternativ"
    "|svaralternativer|svaralternativ|seçenekler|варианты|варианты ответа"
    "|الخيارات|الاختيارات|选项|選項|選択肢|보기|선택지"
)
_COLON = r"[^\S\n]*[:：]"
_ORNAMENT = r"[#*\s]*"
_CUE_LINE = re.compile(
    rf"(?:^|\n){_ORNAMENT}(?:(?:a|{_ANSWER_WORDS}){_COLON}|the (?:correct )?answer is)"
    rf"{_ORNAMENT}\Z",
    re.IGNORECASE,
)
# Within a line only after the end of a sentence, so that no sentence loses its last word.
_SENTENCE_END = r"(?<=[.?!。\uff1f\uff01؟:：)\]\"'”»])"
_CUE_INLINE = re.compile(
    rf"{_SENTENCE_END}\s+(?:a|{_ANSWER_WORDS}){_COLON}{_ORNAMENT}\Z", re.IGNORECASE
)
CUE_BEHIND_OPTION = re.compile(rf"\s+(?:{_ANSWER_WORDS}){_COLON}\s*\Z", re.IGNORECASE)
# After lettered options, how a line that asks for the letter begins or ends.
_CUE_BEHIND_LIST = re.compile(
    rf"\A{_ORNAMENT}(?:(?:a|{_ANSWER_WORDS}){_COLON}.*|(?:\S+\s+){{0,9}}(?:answer|option|choice) is"
    rf"(?:{_COLON})?|(?:\S+\s+){{0,2}}\S*{_COLON}|(?:\S+\s+){{0,2}}(?:choose|select|pick)\b.*)"
    rf"{_ORNAMENT}\Z",
    re.IGNORECASE,
)
_HEADING_LINE = re.compile(rf"(?:^|\n){_ORNAMENT}(?:{_HEADING_WORDS}){_COLON}\s*\Z", re.IGNORECASE)
_HEADING_INLINE = re.compile(rf"{_SENTENCE_END}\s+(?:{_HEADING_WORDS}){_COLON}\s*\Z", re.IGNORECASE)
_QUESTION_CUE = re.compile(rf"^\s*(?:{_QUESTION_WORDS}){_COLON}\s*", re.IGNORECASE)


def without_cue(prompt: str) -> str:
    """A prompt without known words at its end that ask for the answer."""
    text = prompt.rstrip()
    for cue in (_CUE_LINE, _CUE_INLINE):
        shorter = cue.sub("", text).rstrip()
        if shorter and shorter != text:
            return shorter
    return text


def without_heading(stem: str) -> str:
    """A stem without a known heading of the option list at its end."""
    text = stem.rstrip()
    return _HEADING_INLINE.sub("", _HEADING_LINE.sub("", text)).rstrip()


def passage_and_question(stem: str) -> tuple[str, str]:
    """A stem in two: the text before a line that begins with `Question:`, and the rest.

    The word itself is removed, since prompts of AQUA tasks add it.
    """
    lines = stem.strip().split("\n")
    for index in range(len(lines) - 1, -1, -1):
        if _QUESTION_CUE.match(lines[index]):
            question = "\n".join([_QUESTION_CUE.sub("", lines[index]), *lines[index + 1 :]])
            if question.strip():
                return "\n".join(lines[:index]).strip(), question.strip()
    return "", stem.strip()


def without_cue_behind_list(text: str) -> str:
    """The text after a list of options, without a last line that asks for the letter."""
    text = text.strip()
    before, _, line = text.rpartition("\n")
    return before.strip() if _CUE_BEHIND_LIST.match(line) else text
