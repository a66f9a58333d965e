"""GSM8K: word problems of arithmetic, with a number as the answer."""

from __future__ import annotations

from adafuse_core.evaluation.tasks.base import Example, Task

GSM8K = Task(
    name="gsm8k",
    title="GSM8K",
    files=("gsm8k.jsonl",),
    instruction="Solve each problem step by step on one line. End with the words: The answer is, and a number.",
    examples=(
        Example(
            question="Mara picks 5 baskets of pears with 12 pears each. She gives away 18 pears. How many pears "
            "are left?",
            answer="Mara picks 5 * 12 = 60 pears. She has 60 - 18 = 42 pears left. The answer is 42.",
        ),
        Example(
            question="A bus ticket costs $3 for adults and half as much for children. How much do 2 adults and 4 "
            "children pay together?",
            answer="A child pays 3 / 2 = $1.50. The adults pay 2 * 3 = $6. The children pay 4 * 1.50 = $6. Together "
            "they pay 6 + 6 = $12. The answer is 12.",
        ),
        Example(
            question="Jonas reads 20 pages a day on weekdays and 35 pages a day on weekends. How many pages does he "
            "read in 2 weeks?",
            answer="On weekdays he reads 5 * 20 = 100 pages a week. On weekends he reads 2 * 35 = 70 pages a week. "
            "That is 100 + 70 = 170 pages a week. In 2 weeks he reads 2 * 170 = 340 pages. The answer is 340.",
        ),
        Example(
            question="A tank holds 240 litres and is a quarter full. A pump adds 15 litres per minute. After how many "
            "minutes is the tank full?",
            answer="The tank has 240 / 4 = 60 litres. It lacks 240 - 60 = 180 litres. The pump needs 180 / 15 = 12 "
            "minutes. The answer is 12.",
        ),
    ),
    metrics=("numeric", "lenient_numeric"),
    max_new_tokens=200,
    shots=4,
)
