"""Triton kernels: products of many experts' rows with their 4-bit weights, one launch, weights unpacked in registers.

y = x · Wᵀ there and dx = dy · W back, bf16 in and out, fp32 sums. Rows lie sorted by expert. In the tensor cores'
products weights stand on the left, since only there they may come from registers, and rows on the right, so that a tile
may be as narrow as 16 rows. `int4_gpu.py` has the layout of weights and alone calls these.

Legend: E experts, O outputs, I inputs, W words of 8 codes, R rows of a tile, B blocks of 128 inputs.
"""

from __future__ import annotations

import triton
import triton.language as tl

# A 4-bit code among the last mantissa bits of bf16's 128 makes the number 128 + code, two of them in a 32-bit word.
MASK = tl.constexpr(0x000F000F)
MAGIC = tl.constexpr(0x43004300)


@triton.jit
def _find_rows(
    starts: tl.tensor, n_experts: tl.tensor, tile: tl.tensor, n_e: tl.constexpr, n_r: tl.constexpr
) -> tl.tensor:
    """Of a tile of rows: its expert (n_experts or more: there is no such tile), its first row, the expert's end."""
    expert_E = tl.arange(0, n_e)
    there_E = expert_E < n_experts
    n_rows_E = tl.load(starts + expert_E + 1, there_E, 0) - tl.load(starts + expert_E, there_E, 0)
    n_tiles_E = (n_rows_E + n_r - 1) // n_r
    # Tiles are numbered through all experts; the expert of a tile is the number of experts whose tiles all come before
    # it.
    expert = tl.sum((tl.cumsum(n_tiles_E, 0) <= tile).to(tl.int32), 0)
    before = tl.sum(tl.where(expert_E < expert, n_tiles_E, 0), 0)
    # A tile too many has no expert. Its loads must still stay inside the table, though what they give is not used.
    known = tl.minimum(expert, n_experts - 1)
    return expert, tl.load(starts + known) + (tile - before) * n_r, tl.load(starts + known + 1)


@triton.jit
def _sheets_of(
    expert: tl.tensor, words: tl.tensor, scales: tl.tensor, offsets: tl.tensor, places: tl.tensor
) -> tl.tensor:
    """Where the expert's words, scales and offsets begin, at multiples that wide loads need."""
    words += tl.multiple_of(tl.load(places + 3 * expert), 4)
    scales += tl.multiple_of(tl.load(places + 3 * expert + 1), 2)
    offsets += tl.multiple_of(tl.load(places + 3 * expert + 2), 2)
    return words, scales, offsets


@triton.jit
def _codes(word: tl.tensor, K: tl.constexpr) -> tl.tensor:
    """128 + code in bf16 for the two codes of quarter K of a word, along a new last axis."""
    # No conversion is needed: the code is written into the mantissa of 128, whose last bits count in ones.
    pair = (word >> (4 * K)) & MASK | MAGIC
    return tl.join(pair.to(tl.int16), (pair >> 16).to(tl.int16)).to(tl.bfloat16, bitcast=True)


@triton.jit
def _number(four: tl.tensor, K: tl.constexpr, HALF: tl.constexpr) -> tl.tensor:
    """The number of quarter K of 64 bits, as it came."""
    # The four numbers of a block are loaded as one 64-bit word, and each quarter of the word's codes takes its own.
    bits = (four >> (16 * K)).to(tl.int16)
    return bits.to(tl.float16, bitcast=True) if HALF else bits.to(tl.bfloat16, bitcast=True)


@triton.jit
def _rounded(value: tl.tensor, PLAIN: tl.constexpr) -> tl.tensor:
    """To bf16. Triton's interpreter cuts off instead and cannot multiply bf16, so there it is done plainly, in fp32."""
    if PLAIN:
        bits = value.to(tl.int32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1) & -65536).to(tl.float32, bitcast=True)
    else:
        rounded = value.to(tl.bfloat16)
    return rounded


@triton.jit
def _add_product(sums: tl.tensor, weights: tl.tensor, rows: tl.tensor, PLAIN: tl.constexpr) -> tl.tensor:
    """sums + weights · rows"""
    return tl.dot(weights, rows.to(tl.float32), sums, input_precision="ieee") if PLAIN else tl.dot(weights, rows, sums)


@triton.jit
def _values(
    code: tl.tensor, scale: tl.tensor, offset: tl.tensor, OFFSETS: tl.constexpr, PLAIN: tl.constexpr
) -> tl.tensor:
    """scale · code + offset, or scale · (code - 8), rounded once to bf16."""
    # 128 is what the codes carry from `_codes`; without offsets 8 more are the middle of the codes' range.
    if OFFSETS:
        value = (code.to(tl.float32) - 128.0) * scale.to(tl.float32) + offset.to(tl.float32)
    elif PLAIN or scale.dtype == tl.float16:
        value = (code.to(tl.float32) - 136.0) * scale.to(tl.float32)
    else:  # The difference is exact and the product rounded once, in bf16 as in fp32, and two go in one step.
        value = (code - tl.full((), 136.0, tl.bfloat16)) * scale
    return _rounded(value, PLAIN)


@triton.jit
def forward(
    x: tl.tensor, y: tl.tensor, starts: tl.tensor, n_experts: tl.tensor, words: tl.tensor, scales: tl.tensor,
    offsets: tl.tensor, places: tl.tensor, d_out: tl.tensor, d_in: tl.tensor, n_e: tl.constexpr, n_o: tl.constexpr,
    n_r: tl.constexpr, OFFSETS: tl.constexpr, HALF: tl.constexpr, WHOLE: tl.constexpr,
    PLAIN: tl.constexpr,
) -> None:  # fmt: skip
    """A tile (O outputs, R rows) of y (rows, O)."""
    # A program finds its rows itself, so that the host need not wait for the device to learn how many rows each expert
    # has.
    expert, first, end = _find_rows(starts, n_experts, tl.program_id(1), n_e, n_r)
    if expert >= n_experts:
        return
    words, scales, offsets = _sheets_of(expert, words, scales, offsets, places)
    o_O = tl.program_id(0) * n_o + tl.arange(0, n_o)
    there_O = o_O < d_out
    lane_I = tl.arange(0, 32)
    row_R = (first + tl.arange(0, n_r)).to(tl.int64)
    # Rows beyond the end are those of the last one once more: they are computed, and not stored.
    x_IR = x + tl.minimum(row_R, end - 1)[None, :] * d_in + lane_I[:, None]
    word_OW = words + o_O[:, None] * 16 + tl.arange(0, 16)[None, :]
    sum_OR = tl.zeros((n_o, n_r), tl.float32)
    for block in range((d_in + 127) // 128):
        # Outputs beyond the last read zeros: they are computed like the others and not stored.
        words_OW = tl.load(word_OW + block * d_out * 16, there_O[:, None], 0)
        scales_O = tl.load(scales + block * d_out + o_O, there_O, 0)
        offsets_O = tl.load(offsets + block * d_out + o_O, there_O, 0) if OFFSETS else scales_O
        for k in tl.static_range(4):
            i = block * 128 + 32 * k
            rows_IR = tl.load(x_IR + i) if WHOLE else tl.load(x_IR + i, (i + lane_I < d_in)[:, None], 0.0)
            scale_O1, offset_O1 = _number(scales_O, k, HALF)[:, None], _number(offsets_O, k, HALF)[:, None]
            code_OI = _codes(words_OW, k).reshape((n_o, 32))
            sum_OR = _add_product(sum_OR, _values(code_OI, scale_O1, offset_O1, OFFSETS, PLAIN), rows_IR, PLAIN)
    y_OR = y + row_R[None, :] * d_out + o_O[:, None]
    tl.store(y_OR, _rounded(sum_OR, PLAIN).to(tl.bfloat16), there_O[:, None] & (row_R < end)[None, :])


@triton.jit
def _weights(
    words_WO: tl.tensor, scales_BO: tl.tensor, offsets_BO: tl.tensor, K: tl.constexpr, OFFSETS: tl.constexpr,
    HALF: tl.constexpr, PLAIN: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Quarter K of blocks, (32 · B, O)."""
    n_w: tl.constexpr = words_WO.shape[0]
    n_o: tl.constexpr = words_WO.shape[1]
    code_IO = _codes(words_WO, K).permute((0, 2, 1)).reshape((2 * n_w, n_o))
    scale_IO = _spread(_number(scales_BO, K, HALF), n_o)
    offset_IO = _spread(_number(offsets_BO, K, HALF), n_o) if OFFSETS else scale_IO
    return _values(code_IO, scale_IO, offset_IO, OFFSETS, PLAIN)


@triton.jit
def _spread(number_BO: tl.tensor, n_o: tl.constexpr) -> tl.tensor:
    """Each row 32 times, (32 · B, O)."""
    n_b: tl.constexpr = number_BO.shape[0]
    return tl.broadcast_to(number_BO[:, None, :], (n_b, 32, n_o)).reshape((n_b * 32, n_o))


@triton.jit
def backward(
    dy: tl.tensor, dx: tl.tensor, starts: tl.tensor, n_experts: tl.tensor, words: tl.tensor, scales: tl.tensor,
    offsets: tl.tensor, places: tl.tensor, d_out: tl.tensor, d_in: tl.tensor, n_e: tl.constexpr, n_b: tl.constexpr,
    n_o: tl.constexpr, n_r: tl.constexpr, OFFSETS: tl.constexpr, HALF: tl.constexpr, PLAIN: tl.constexpr,
) -> None:  # fmt: skip
    """A tile (128 · B inputs, R rows) of dx (rows, I), summed over outputs, O at a time."""
    expert, first, end = _find_rows(starts, n_experts, tl.program_id(1), n_e, n_r)
    if expert >= n_experts:
        return
    words, scales, offsets = _sheets_of(expert, words, scales, offsets, places)
    o_O = tl.arange(0, n_o)
    n_blocks = (d_in + 127) // 128
    block_B = tl.program_id(0) * n_b + tl.arange(0, n_b)
    block_W = tl.program_id(0) * n_b + tl.arange(0, 16 * n_b) // 16
    there_B1, there_W1 = (block_B < n_blocks)[:, None], (block_W < n_blocks)[:, None]
    word_WO = words + (block_W * d_out * 16 + tl.arange(0, 16 * n_b) % 16)[:, None] + o_O[None, :] * 16
    four_BO = (block_B * d_out)[:, None] + o_O[None, :]
    row_R = (first + tl.arange(0, n_r)).to(tl.int64)
    dy_OR = dy + tl.minimum(row_R, end - 1)[None, :] * d_out + o_O[:, None]
    sum0_IR = tl.zeros((32 * n_b, n_r), tl.float32)
    # One sum for each quarter of a word, since the quarters unpack to inputs that lie 32 apart.
    sum1_IR, sum2_IR, sum3_IR = sum0_IR, sum0_IR, sum0_IR
    for o in range(0, d_out, n_o):
        there_O = o + o_O < d_out
        words_WO = tl.load(word_WO + o * 16, there_W1 & there_O[None, :], 0)
        scales_BO = tl.load(scales + four_BO + o, there_B1 & there_O[None, :], 0)
        offsets_BO = tl.load(offsets + four_BO + o, there_B1 & there_O[None, :], 0) if OFFSETS else scales_BO
        rows_OR = tl.load(dy_OR + o, there_O[:, None], 0.0)
        # The quarters are written out, because K must be a constant of the compiler and each has a sum of its own.
        weights_IO = _weights(words_WO, scales_BO, offsets_BO, 0, OFFSETS, HALF, PLAIN)
        sum0_IR = _add_product(sum0_IR, weights_IO, rows_OR, PLAIN)
        weights_IO = _weights(words_WO, scales_BO, offsets_BO, 1, OFFSETS, HALF, PLAIN)
        sum1_IR = _add_product(sum1_IR, weights_IO, rows_OR, PLAIN)
        weights_IO = _weights(words_WO, scales_BO, offsets_BO, 2, OFFSETS, HALF, PLAIN)
        sum2_IR = _add_product(sum2_IR, weights_IO, rows_OR, PLAIN)
        weights_IO = _weights(words_WO, scales_BO, offsets_BO, 3, OFFSETS, HALF, PLAIN)
        sum3_IR = _add_product(sum3_IR, weights_IO, rows_OR, PLAIN)
    lane_I = tl.arange(0, 32 * n_b)
    # The first input that each lane of quarter 0 stands for; the other quarters lie 32, 64 and 96 behind it.
    i_I = (tl.program_id(0) * n_b + lane_I // 32) * 128 + lane_I % 32
    dx_IR = dx + row_R[None, :] * d_in + i_I[:, None]
    wanted_1R = (row_R < end)[None, :]
    tl.store(dx_IR, _rounded(sum0_IR, PLAIN).to(tl.bfloat16), (i_I < d_in)[:, None] & wanted_1R)
    tl.store(dx_IR + 32, _rounded(sum1_IR, PLAIN).to(tl.bfloat16), (i_I + 32 < d_in)[:, None] & wanted_1R)
    tl.store(dx_IR + 64, _rounded(sum2_IR, PLAIN).to(tl.bfloat16), (i_I + 64 < d_in)[:, None] & wanted_1R)
    tl.store(dx_IR + 96, _rounded(sum3_IR, PLAIN).to(tl.bfloat16), (i_I + 96 < d_in)[:, None] & wanted_1R)
