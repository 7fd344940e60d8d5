"""From a line of JSONL to a batch of tensors.

Files:

    samples.py   line -> Sample          prompts.py  Sample -> chat messages
    images.py    path -> PIL image       answers.py  boxes <-> answer text
    resize.py    box frames              teachers.py which demonstrations a sample gets
    formats/     COCO, VOC, YOLO         encode.py   Sample -> tokens, spans, pixels, boxes
                                         collate.py  encoded samples -> left-padded batch
"""
