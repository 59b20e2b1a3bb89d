"""Export a Hugging Face checkpoint as a bundle, without torch.

The graphs of the `onnxruntime` flavor (opset 23 + com.microsoft, float32 activations):

| graph | input / output | shape | dtype |
|---|---|---|---|
| vision | `pixel_values` | [num_images, num_patches, 588] | uint8, raw RGB levels |
| | `position_ids` | [num_images, num_patches, 2] | int64, (row, column), merge-block order |
| | -> `image_embeds` | [num_images, num_patches / 4, hidden_size] | float32 |
| vision_video | `pixel_values` | [num_images, num_patches, 1176] | uint8, frame pairs |
| | `position_ids`, -> `image_embeds` | as vision | |
| decoder | `inputs_embeds` | [batch, sequence, hidden_size] | float32 |
| | `position_ids` | [3, batch, sequence] | int64, M-RoPE rows t, h, w |
| | `seqlens_k` | [batch] | int32, tokens in the cache after this call, minus one |
| | `total_sequence_length` | [] | int32, the largest of them plus one |
| | `logit_index` | [batch] | int64, the row of `inputs_embeds` whose logits are wanted |
| | `past_key_values.{i}.key` / `.value` | [batch, num_kv_heads, capacity, head_dim] | float32 |
| | -> `logits` | [batch, vocab_size] | float32 |
| | -> `present.{i}.key` / `.value` | as past; bind both to the same buffer | float32 |

The graphs of the `tensorrt` flavor (`export --target`, see lowering/): opset 20 or 24, no
com.microsoft, computed in bfloat16, float16 or float32, c. As above but:

| graph | input / output | shape | dtype |
|---|---|---|---|
| decoder | `attention_mask` | [batch, 1, sequence, capacity], True: look | bool |
| | `write_indices` | [batch], tokens in the cache before this call | int64 |
| | `past_key_values.{i}.key` / `.value` | capacity fixed | c |
| | -> `present.{i}.key` / `.value` | as past; bind both to the same buffer | c |

and for TensorRT before 10.15, which cannot write in place, no `write_indices`, a mask of
[batch, 1, sequence, capacity + sequence], a capacity that is free, and `present` of the new rows
alone, [batch, num_kv_heads, sequence, head_dim]. There is no `seqlens_k` and no
`total_sequence_length`.

A patch is (channel, row, column) in the 588 form, (channel, frame, row, column) in the 1176 form.
Both vision graphs share `vision.onnx.data`. Images of equal grid (and the frame pairs of one clip)
are stacked along `num_images`: attention never crosses it. Token embeddings are no graph but a
table that the host maps into memory and reads row by row.
"""

from ..runtime.telemetry import turn_off

turn_off("onnxruntime", "huggingface_hub")
